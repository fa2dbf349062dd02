"""Computes recall, average precision and reciprocal rank of rankings with several relevant items.

A ranking is told by its relevant items: how many other items score above each, and how many tie
with it, relevant ones not counted (`core.metrics.target_ranks`). That orders the relevant items
among themselves as well: of two, the one with fewer items above is higher; with as many above and
as many tied, both are of one score. Tied items come in a random order, and every metric is its
expectation over these orders. With one relevant item recall is the hit rate, and average precision
is the reciprocal rank.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.special

NAMES = ("recall", "map", "mrr")


@dataclasses.dataclass(frozen=True)
class _Ties:
    """Describes relevant items of one score in one ranking.

    Attributes:
      ranking: its number.
      start: items of any kind that score above.
      before: relevant items among these.
      relevant, tied: items of the score: relevant, and others.
    """

    ranking: np.ndarray
    start: np.ndarray
    before: np.ndarray
    relevant: np.ndarray
    tied: np.ndarray


def measure(
    above: np.ndarray, tied: np.ndarray, ranking: np.ndarray, cutoff: int
) -> dict[str, np.ndarray]:
    """Returns 'recall@K', 'map@K' and 'mrr@K' of every ranking, float64 [R].

    Average precision is divided by the relevant items that K ranks can hold.

    Args:
      above, tied: int [E], of every relevant item.
      ranking: int [E], the number of the ranking that it belongs to, from 0 to R - 1, each there.
      cutoff: K.
    """
    ties = _ties(above, tied, ranking)
    counts = np.bincount(ranking)
    size = ties.relevant + ties.tied
    # Of the ranks of one score, those within K.
    within = np.clip(cutoff - ties.start, 0, size)
    hits = ties.relevant * within / size
    recall = np.bincount(ties.ranking, hits) / counts
    precision = np.bincount(ties.ranking, _precisions(ties, within))
    first = _first_reciprocal(ties, within)
    return {
        f"recall@{cutoff}": recall,
        f"map@{cutoff}": precision / np.minimum(counts, cutoff),
        f"mrr@{cutoff}": np.bincount(ties.ranking, first, minlength=len(counts)),
    }


def _ties(above: np.ndarray, tied: np.ndarray, ranking: np.ndarray) -> _Ties:
    # Relevant items next to each other, without others tied: their order changes nothing.
    keys, counts = np.unique(np.stack([ranking, above, tied]), axis=1, return_counts=True)
    number, above, tied = keys.astype(np.int64)
    running = np.cumsum(counts) - counts
    first = np.searchsorted(number, number)
    before = running - running[first]
    return _Ties(number, above + before, before, counts, tied)


def _precisions(ties: _Ties, within: np.ndarray) -> np.ndarray:
    """Returns the expected sum of precisions at the relevant items of each score, within K.

    At rank p of a score's n = g + t ranks an item is relevant in g / n of the orders, and then
    before + 1 + (p - 1) (g - 1) / (n - 1) relevant items have come; the sum of (a + b p) / (s + p)
    over p is b w + (a - b s) (H(s + w) - H(s)) with the harmonic numbers H.
    """
    relevant, start = ties.relevant, ties.start
    size = relevant + ties.tied
    slope = (relevant - 1) / np.maximum(size - 1, 1)
    constant = ties.before + 1 - slope
    harmonic = scipy.special.digamma(start + within + 1) - scipy.special.digamma(start + 1)
    return relevant / size * (slope * within + (constant - slope * start) * harmonic)


def _first_reciprocal(ties: _Ties, within: np.ndarray) -> np.ndarray:
    """Returns the expected reciprocal rank of the first relevant item, 0 beyond K, by score."""
    values = np.zeros(len(within))
    for place in np.flatnonzero((ties.before == 0) & (within > 0)):
        relevant, others = int(ties.relevant[place]), int(ties.tied[place])
        # The first of g relevant among n is at p in C(n - p, g - 1) of C(n, g) orders.
        ranks = np.arange(1, min(int(within[place]), others + 1) + 1)
        size = relevant + others
        chances = np.exp(
            _log_choose(size - ranks, relevant - 1) - _log_choose(size, relevant),
        )
        values[place] = np.sum(chances / (ties.start[place] + ranks))
    return values


def _log_choose(count: np.ndarray | int, chosen: int) -> np.ndarray:
    gammaln = scipy.special.gammaln
    return gammaln(np.add(count, 1)) - gammaln(chosen + 1) - gammaln(np.subtract(count, chosen - 1))
