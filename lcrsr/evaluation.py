"""Ranks validation and test targets: against sampled candidates, or the whole catalogue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core import metrics
from core.errors import UserError
from lcrsr.embedding import Tables, look_up
from lcrsr.ranker import Ranker

_CATALOGUE_CHUNK = 2048


class Evaluator:
    """Scores with a `Ranker` and counts metrics; one compilation a shape.

    Args:
      ranker: the model.
      metric_names: such as 'hr@10', 'ndcg@5'.
    """

    def __init__(self, ranker: Ranker, metric_names: Sequence[str]):
        self._ranker = ranker
        self._names = tuple(metric_names)
        self._sampled = jax.jit(self._rank_sampled)
        self._full = jax.jit(self._rank_full)
        self._top_k = jax.jit(self._rank_top, static_argnames="k")

    def sampled(
        self, params: Any, tables: Tables, batches: Iterable[dict[str, np.ndarray]]
    ) -> metrics.Sums:
        """Metrics of column 0 among a batch's candidates [B, N].

        Raises:
          FloatingPointError: a score is NaN.
        """
        sums = metrics.Sums(self._names)
        for batch in batches:
            above, tied, broken = self._sampled(params, tables, batch)
            sums.add(np.asarray(above), np.asarray(tied), batch["mask"], np.asarray(broken))
        return sums

    def full(
        self,
        params: Any,
        tables: Tables,
        batches: Iterable[tuple[dict[str, np.ndarray], np.ndarray]],
    ) -> metrics.Sums:
        """Metrics of column 0 of `candidates` among the whole catalogue.

        Args:
          batches: pairs of a batch and the items its users have seen, int32 [B, S], 0 padded;
            these are removed from the ranking, the target never.
        """
        sums = metrics.Sums(self._names)
        for batch, seen in batches:
            above, tied, broken = self._full(params, tables, batch, seen)
            sums.add(np.asarray(above), np.asarray(tied), batch["mask"], np.asarray(broken))
        return sums

    def top_k(
        self, params: Any, tables: Tables, batch: dict[str, np.ndarray], seen: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best unseen items: ids int32 [B, k] and scores (logits of Eq. 10) float32 [B, k]."""
        available = tables["item"].shape[0] - 1
        if k > available:
            raise UserError(
                f"expected top_k of at most {available}, the size of the catalogue, found {k}; "
                "pass a smaller --top_k"
            )
        items, scores = self._top_k(params, tables, batch, seen, k=k)
        return np.asarray(items), np.asarray(scores)

    def _rank_sampled(self, params, tables, batch):
        rows = look_up(tables, batch)
        users = self._ranker.represent(params, batch, rows)
        scores = self._ranker.score(params, users, rows)
        above, tied = metrics.target_ranks(scores)
        return above, tied, jnp.isnan(scores).any(-1)

    def _catalogue_scores(self, params, tables, batch):
        """Scores [B, V+1] over the table's rows, row 0 at minus infinity."""
        # One candidate is enough for the shapes: the catalogue is scored from its table.
        batch = batch | {"candidates": batch["candidates"][:, :1]}
        rows = look_up(tables, batch)
        users = self._ranker.represent(params, batch, rows)
        num_rows, width = tables["item"].shape
        chunks = -(-num_rows // _CATALOGUE_CHUNK)
        padded = jnp.zeros((chunks * _CATALOGUE_CHUNK, width)).at[:num_rows].set(tables["item"])

        def score_chunk(chunk):
            return self._ranker.score_catalogue(params, users, rows, chunk)

        scores = jax.lax.map(score_chunk, padded.reshape(chunks, _CATALOGUE_CHUNK, width))
        scores = jnp.moveaxis(scores, 0, 1).reshape(batch["mask"].shape[0], -1)[:, :num_rows]
        return scores.at[:, 0].set(-jnp.inf)

    def _rank_full(self, params, tables, batch, seen):
        scores = self._catalogue_scores(params, tables, batch)
        broken = jnp.isnan(scores).any(-1)
        users = jnp.arange(scores.shape[0])[:, None]
        target = batch["candidates"][:, :1]
        target_score = jnp.take_along_axis(scores, target, 1)
        scores = scores.at[users, seen].set(-jnp.inf).at[users, target].set(-jnp.inf)
        above = (scores > target_score).sum(-1)
        tied = (scores == target_score).sum(-1)
        return above, tied, broken

    def _rank_top(self, params, tables, batch, seen, *, k):
        scores = self._catalogue_scores(params, tables, batch)
        scores = scores.at[jnp.arange(scores.shape[0])[:, None], seen].set(-jnp.inf)
        values, items = jax.lax.top_k(scores, k)
        return items.astype(jnp.int32), values
