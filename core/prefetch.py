"""Values made ahead of their use, in threads."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def ahead(make: Callable[[int], T], start: int, *, count: int, threads: int) -> Iterator[T]:
    """Yields make(start), make(start + 1), ... without end, in this order.

    Args:
      make: safe to call from several threads.
      start: the first number.
      count: values that are made or being made while one is used.
      threads: that make them.
    """
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        pending = collections.deque(pool.submit(make, start + i) for i in range(count))
        number = start + count
        while True:
            value = pending.popleft().result()
            pending.append(pool.submit(make, number))
            number += 1
            yield value
    finally:
        pool.shutdown(cancel_futures=True)  # what has not begun is not waited for
