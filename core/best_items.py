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


def best_unseen(scores: np.ndarray, seen: np.ndarray, target: np.ndarray, k: int) -> np.ndarray:
    """Returns the best items of every row, int32 [B, <= k]; of equal scores the lower number first.

    Args:
      scores: float [B, V+1], column 0 padding.
      seen: int [B, S], items to leave out, 0 padded; the row's own target stays.
      target: int [B].

    Returns:
      Numbers of items, 0 where a row has fewer.
    """
    ranked = np.array(scores, np.float32)
    own = np.take_along_axis(ranked, target[:, None], 1)
    np.put_along_axis(ranked, seen, -np.inf, 1)
    np.put_along_axis(ranked, target[:, None], own, 1)
    ranked[:, 0] = -np.inf
    k = min(k, ranked.shape[1] - 1)
    # Whatever scores at least as much as the k-th, in the order of scores and numbers.
    least = np.partition(ranked, -k, 1)[:, -k]
    best = np.zeros((len(ranked), k), np.int32)
    for row, values in enumerate(ranked):
        items = np.flatnonzero((values >= least[row]) & (values > -np.inf))
        items = items[np.argsort(-values[items], kind="stable")[:k]]
        best[row, : len(items)] = items
    return best
