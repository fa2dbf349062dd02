"""Finds places in the events of users, whose times ascend."""

from __future__ import annotations

import numpy as np


def first_not_before(
    times: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    wanted: np.ndarray,
    *,
    after: bool = False,
) -> np.ndarray:
    """Returns the first row of each range whose time is not before the wanted one, int64 [n].

    Ranges are halved together: a search of all rows would leave the cache at every step.

    Args:
      times: int64 [R], ascending within every range.
      low, high: int64 [n], rows low[i] to high[i] - 1 are the range of wanted[i].
      after: asks for the first row that is later than the wanted time.

    Returns:
      int64 [n], high[i] where all rows are earlier.
    """
    low, high = low.astype(np.int64), high.astype(np.int64)
    longest = int((high - low).max(initial=0))
    for _ in range(longest.bit_length()):
        middle = (low + high) >> 1
        at = times[np.minimum(middle, len(times) - 1)]
        earlier = (low < high) & ((at <= wanted) if after else (at < wanted))
        low = np.where(earlier, middle + 1, low)
        high = np.where(earlier, high, middle)
    return low
