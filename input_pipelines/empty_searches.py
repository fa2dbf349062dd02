"""Leaves out searches with neither words nor clicks, which no log holds."""

from __future__ import annotations

import numpy as np


def with_content(word_offsets: np.ndarray, click_offsets: np.ndarray) -> np.ndarray:
    """Tells which searches have words or clicks, bool [S], given the offsets [S+1] of both.

    No log holds an empty search: nothing can be learnt from it, and a row of zeros is padding.
    """
    return (np.diff(word_offsets) > 0) | (np.diff(click_offsets) > 0)


def count_left_out(kept: np.ndarray) -> dict[str, int]:
    """Counts the searches that are not `kept`, bool [S], for `Log.reading`; {} without any."""
    left_out = int((~kept).sum())
    return {"searches_left_out_as_empty": left_out} if left_out else {}
