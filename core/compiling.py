"""Says what a program waits for while XLA compiles, which can take minutes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

# A body that ends sooner is not announced.
_SILENT_S = 2.0


@contextlib.contextmanager
def announced(what: str, say: Callable[[str], None], after_s: float = _SILENT_S) -> Iterator[None]:
    """Says that the body goes on where it takes longer than a moment, and then how long it took.

    Args:
      what: goes on, such as 'compiling the training step'.
      say: takes a line; called from another thread while the body runs.
      after_s: seconds that pass without a word.
    """
    began = time.monotonic()
    said = threading.Event()

    def speak() -> None:
        said.set()
        say(f"{what} ...")

    timer = threading.Timer(after_s, speak)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if said.is_set():
        timer.join()
        say(f"{what} took {time.monotonic() - began:.0f} s")
