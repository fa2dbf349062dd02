"""Chooses the best items of a list of scores, in NumPy alone."""

from __future__ import annotations

import numpy as np


def best_items(
    scores: np.ndarray, left_out: np.ndarray, candidates: np.ndarray | None, k: int
) -> np.ndarray:
    """Returns the numbers of the best items, int [<= k]; of equal scores the lower number first.

    Args:
      scores: float32 [V+1], column 0 padding.
      left_out: numbers of items to leave out.
      candidates: numbers of the items to choose from; None for all.
    """
    allowed = np.full(len(scores), candidates is None)
    if candidates is not None:
        allowed[candidates] = True
    allowed[0] = False
    allowed[left_out] = False
    numbers = np.flatnonzero(allowed)
    of_numbers = scores[numbers]
    if k < len(numbers):
        least = np.partition(of_numbers, -k)[-k]
        numbers, of_numbers = numbers[of_numbers >= least], of_numbers[of_numbers >= least]
    return numbers[np.argsort(-of_numbers, kind="stable")[:k]]
