"""Baselines without training by gradients: their protocol, and their evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from core import metrics
from lcrsr.evaluation import check_top_k
from lcrsr.ranker import Batch


def below_zero(counts: np.ndarray) -> np.ndarray:
    """Orders items by how often they were clicked, all of them below a score of 0.

    Args:
      counts: [V+1], of training clicks.

    Returns:
      float32 [V+1], whole numbers, -1 for the most clicked; equal counts stay tied.
    """
    values, places = np.unique(counts, return_inverse=True)
    return (places - len(values)).astype(np.float32)


class Fitted(Protocol):
    """Scores items by what it has fitted to the training clicks."""

    def scores(self, batch: Batch) -> np.ndarray:
        """Scores of all items for a batch's users, float32 [B, V+1]; column 0 is padding."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns what it has fitted; its module's `restored(settings, arrays)` takes it back."""
        ...


class FittedEvaluator:
    """Evaluates a fitted scorer as `lcrsr.evaluation.Evaluator` does; `params` and `tables` are not
    used.
    """

    def __init__(self, scorer: Fitted, metric_names: Sequence[str]):
        self._scorer, self._names = scorer, tuple(metric_names)

    def sampled(self, params: Any, tables: Any, batches: Iterable[Batch]) -> metrics.Sums:
        """Metrics of column 0 among a batch's candidates [B, N]."""
        del params, tables
        sums = metrics.Sums(self._names)
        for batch in batches:
            scores = np.take_along_axis(self._scorer.scores(batch), batch["candidates"], 1)
            self._add(sums, scores, 0, batch["mask"])
        return sums

    def full(
        self, params: Any, tables: Any, batches: Iterable[tuple[Batch, np.ndarray]]
    ) -> metrics.Sums:
        """Metrics of column 0 of `candidates` among all items but those seen [B, S]."""
        del params, tables
        sums = metrics.Sums(self._names)
        for batch, seen in batches:
            scores = self._without(batch, seen)
            target = batch["candidates"][:, :1]
            of_target = np.take_along_axis(self._scorer.scores(batch), target, 1)
            np.put_along_axis(scores, target, -np.inf, 1)
            self._add(sums, np.concatenate([of_target, scores], 1), 0, batch["mask"])
        return sums

    def scores(self, params: Any, tables: Any, batch: Batch) -> np.ndarray:
        """Scores every item for a batch's users, float32 [B, V+1]; column 0 is padding."""
        del params, tables
        return np.asarray(self._scorer.scores(batch), np.float32)

    def top_k(
        self, params: Any, tables: Any, batch: Batch, seen: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the best unseen items: ids int32 [B, k] and scores float32 [B, k]; ties by id."""
        del params, tables
        scores = self._without(batch, seen)
        check_top_k(k, scores.shape[1] - 1)
        items = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return items.astype(np.int32), np.take_along_axis(scores, items, 1)

    def _without(self, batch: Batch, seen: np.ndarray) -> np.ndarray:
        scores = np.array(self._scorer.scores(batch), np.float32)
        scores[:, 0] = -np.inf
        np.put_along_axis(scores, seen, -np.inf, 1)
        return scores

    @staticmethod
    def _add(sums: metrics.Sums, scores: np.ndarray, target: int, mask: np.ndarray) -> None:
        above, tied = metrics.target_ranks(scores, target)
        broken = np.isnan(scores).any(-1)
        sums.add(np.asarray(above), np.asarray(tied), np.asarray(mask), broken)
