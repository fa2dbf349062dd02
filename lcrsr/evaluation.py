"""Ranks validation and test targets: against sampled candidates, or the whole catalogue."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from core import metrics
from core.errors import UserError
from core.partitioning import DATA, MODEL, Partition
from lcrsr.embedding import Tables, look_up, with_item_words
from lcrsr.ranker import Ranker, numbers_of

# Items scored at once where the ranker does not say: for a batch of users, more than this many no
# longer fit the caches of a CPU.
_CATALOGUE_CHUNK = 256


class Evaluator:
    """Scores with a `Ranker` and counts metrics; one compilation a shape.

    Args:
      ranker: the model.
      metric_names: such as 'hr@10', 'ndcg@5'.
      num_items: V, where the item table has rows beyond it; None means no more rows.
      partition: the mesh over which the tables are cut, or None for one device. Every device
        ranks its own rows of the catalogue; counts and best items are merged.
      item_words: int32 [V+1, n], words that are part of the items' vectors, or None.
    """

    def __init__(
        self,
        ranker: Ranker,
        metric_names: Sequence[str],
        num_items: int | None = None,
        partition: Partition | None = None,
        item_words: np.ndarray | None = None,
    ):
        self._ranker, self._num_items, self._partition = ranker, num_items, partition
        self._pack = 1 if partition is None else partition.rows_together
        self._names = tuple(metric_names)
        # Once a call, not once a batch.
        self._with_words = functools.partial(with_item_words, item_words=item_words)
        out: dict[str, Any] = {} if partition is None else {"out_shardings": partition.replicated}
        self._numbers = numbers_of(ranker)
        self.rank_sampled = jax.jit(self._rank_sampled, **out)
        self._full = jax.jit(self._rank_full, static_argnames="keep", **out)
        self._top_k = jax.jit(self._rank_top, static_argnames="k", **out)
        self._scores = jax.jit(self._score_all)

    def share_programs(self, other: Evaluator) -> None:
        """Ranks in the compiled programs of `other`, whose ranker differs in numbers alone."""
        self.rank_sampled, self._full, self._top_k = other.rank_sampled, other._full, other._top_k

    def sampled(
        self, params: Any, tables: Tables, batches: Iterable[dict[str, np.ndarray]]
    ) -> metrics.Sums:
        """Metrics of column 0 among a batch's candidates [B, N].

        Raises:
          FloatingPointError: a score is NaN.
        """
        sums, tables = metrics.Sums(self._names), self._with_words(tables)
        for batch in batches:
            above, tied, broken = self.rank_sampled(params, tables, self._put(batch), self._numbers)
            sums.add(np.asarray(above), np.asarray(tied), batch["mask"], np.asarray(broken))
        return sums

    def full(
        self,
        params: Any,
        tables: Tables,
        batches: Iterable[tuple[dict[str, np.ndarray], np.ndarray]],
        keep: int = 0,
    ) -> metrics.Sums:
        """Metrics of column 0 of `candidates` among the whole catalogue.

        Args:
          batches: pairs of a batch and the items its users have seen, int32 [B, S], 0 padded;
            these are removed from the ranking, the target never.
          keep: how many of the best items the sums keep of every ranking; none on a mesh, whose
            devices hold parts of it.
        """
        sums, tables = metrics.Sums(self._names), self._with_words(tables)
        keep = min(keep, self._last_item(tables)) if self._partition is None else 0
        for batch, seen in batches:
            counts, *best = self._full(
                params, tables, *self._put((batch, seen)), self._numbers, keep=keep
            )
            above, tied, broken = map(np.asarray, counts)
            sums.add(above, tied, batch["mask"], broken, *map(np.asarray, best))
        return sums

    def top_k(
        self, params: Any, tables: Tables, batch: dict[str, np.ndarray], seen: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the best unseen items: ids int32 [B, k] and scores (logits of Eq. 10) float32 [B,
        k].
        """
        check_top_k(k, self._last_item(tables))
        tables = self._with_words(tables)
        items, scores = self._top_k(params, tables, *self._put((batch, seen)), self._numbers, k=k)
        return np.asarray(items), np.asarray(scores)

    def scores(
        self, params: Any, tables: Tables, batch: dict[str, np.ndarray], **numbers: Any
    ) -> np.ndarray:
        """Scores every item for a batch's users on one device: float32 [B, V+1], column 0 padding.

        What is compiled depends on B alone. On CPUs every user is scored alone, which costs no
        time there, so that a user's scores are the same bits whatever the batch.

        Args:
          batch: with `query` int32 [B, W] the scores are those of a search.
          numbers: other values of the ranker's `numbers`; `active_steps` may be int32 [B, 1].
        """
        every = self._numbers | numbers
        scores = self._scores(params, self._with_words(tables), batch, every)
        return np.asarray(scores)[:, : self._last_item(tables) + 1]

    def _score_all(self, params, tables, batch, numbers):
        def unchanged(scores, first):
            del first
            return scores

        def of_batch(part):
            return self._on_catalogue(unchanged, params, tables, *part)

        # A number for all users stays one; the others have a row for each.
        shared = {name: value for name, value in numbers.items() if not jnp.ndim(value)}
        numbers = {name: value for name, value in numbers.items() if name not in shared}

        def of_user(part):
            batch, numbers = jax.tree.map(lambda row: row[None], part)
            return of_batch((batch, numbers | shared))[0]

        if jax.default_backend() != "cpu":
            return of_batch((batch, numbers | shared))
        return jax.lax.map(of_user, (batch, numbers))

    def _put(self, batch: Any) -> Any:
        return batch if self._partition is None else self._partition.put_batch(batch)

    def _last_item(self, tables: Tables) -> int:
        held = tables["item"].shape[0] * self._pack
        return held - 1 if self._num_items is None else self._num_items

    def _rank_sampled(self, params, tables, batch, numbers=None):
        rows = look_up(tables, batch, self._partition)
        users = self._ranker.represent(params, batch, rows)
        scores = self._ranker.score(params, users, rows, **(numbers or {}))
        above, tied = metrics.target_ranks(scores)
        return above, tied, jnp.isnan(scores).any(-1)

    def _on_catalogue(self, function, params, tables, batch, numbers, *extra):
        """Runs `function(scores, first, *extra)` on every device's rows of the catalogue.

        Args:
          function: gets scores [B', V'] with B' the users of its copy of the tables, the id of
            its first row, and its users' parts of `extra`; collectives go over the axis `MODEL`.
        """
        # One candidate is enough for the shapes: the catalogue is scored from its table.
        batch = batch | {"candidates": batch["candidates"][:, :1]}
        rows = look_up(tables, batch, self._partition)
        users = self._ranker.represent(params, batch, rows)
        last = self._last_item(tables)

        def on_rows(params, users, rows, table, *extra):
            held = table.shape[0] * self._pack
            first = 0 if self._partition is None else jax.lax.axis_index(MODEL) * held
            score: Any = self._ranker.score_catalogue
            if "query" in batch:
                of_query: Any = self._ranker
                score = functools.partial(of_query.score_query, query=batch["query"])
            scores = self._scores_of_rows(score, params, users, rows, table, numbers or {})
            ids = first + jnp.arange(held)
            return function(jnp.where((ids > 0) & (ids <= last), scores, -jnp.inf), first, *extra)

        if self._partition is None:
            return on_rows(params, users, rows, tables["item"], *extra)
        by_user, everywhere = PartitionSpec(DATA), PartitionSpec()
        return jax.shard_map(
            on_rows,
            mesh=self._partition.mesh,
            in_specs=(
                everywhere,
                by_user,
                by_user,
                PartitionSpec(MODEL),
                *(by_user for _ in extra),
            ),
            out_specs=by_user,
            check_vma=False,
        )(params, users, rows, tables["item"], *extra)

    def _scores_of_rows(self, score, params, users, rows, table, numbers):
        """Scores [B, V'] of a table's rows, a chunk at a time, without a copy of the table."""
        num_rows, width = table.shape
        most = getattr(self._ranker, "catalogue_chunk", _CATALOGUE_CHUNK)
        chunk = _even_chunk(num_rows, max(1, most // self._pack))

        def score_chunk(number, scores):
            # The last chunk goes back over rows of the one before.
            start = jnp.minimum(number * chunk, num_rows - chunk)
            part = jax.lax.dynamic_slice(table, (start, 0), (chunk, width))
            part = part.reshape(chunk * self._pack, -1)
            of_part = score(params, users, rows, part, **numbers)
            of_part = of_part.astype(jnp.float32)
            return jax.lax.dynamic_update_slice(scores, of_part, (0, start * self._pack))

        count = rows["candidates"].shape[0]
        empty = jnp.zeros((count, num_rows * self._pack), jnp.float32)
        return jax.lax.fori_loop(0, -(-num_rows // chunk), score_chunk, empty)

    def _across(self, values, how):
        """Counts of every device's rows together."""
        return values if self._partition is None else how(values, MODEL)

    def _rank_full(self, params, tables, batch, seen, numbers=None, *, keep=0):
        """Returns (above, tied, broken), and with `keep` the best items of each ranking."""

        def rank(scores, first, target, seen):
            broken = jnp.isnan(scores).any(-1)
            users = jnp.arange(scores.shape[0])[:, None]
            own = _own(target, first, scores)
            target_score = scores.at[users, own].get(mode="fill", fill_value=-jnp.inf)
            target_score = self._across(target_score, jax.lax.pmax)
            scores = scores.at[users, _own(seen, first, scores)].set(-jnp.inf, mode="drop")
            best = []
            if keep:
                ranked = scores.at[users, own].set(target_score, mode="drop")
                values, items = jax.lax.top_k(ranked, keep)
                best = [jnp.where(values > -jnp.inf, items, 0).astype(jnp.int32)]
            scores = scores.at[users, own].set(-jnp.inf, mode="drop")
            above = (scores > target_score).sum(-1)
            tied = (scores == target_score).sum(-1)
            return *(self._across(count, jax.lax.psum) for count in (above, tied, broken)), *best

        target = batch["candidates"][:, :1]
        above, tied, broken, *best = self._on_catalogue(
            rank, params, tables, batch, numbers, target, seen
        )
        return (above, tied, broken > 0), *best

    def _rank_top(self, params, tables, batch, seen, numbers=None, *, k):
        def best(scores, first, seen):
            users = jnp.arange(scores.shape[0])[:, None]
            scores = scores.at[users, _own(seen, first, scores)].set(-jnp.inf, mode="drop")
            values, items = jax.lax.top_k(scores, min(k, scores.shape[1]))
            items = items + first
            if self._partition is None:
                return items, values
            items = jax.lax.all_gather(items, MODEL, axis=1, tiled=True)
            values = jax.lax.all_gather(values, MODEL, axis=1, tiled=True)
            values, places = jax.lax.top_k(values, k)
            return jnp.take_along_axis(items, places, 1), values

        items, values = self._on_catalogue(best, params, tables, batch, numbers, seen)
        return items.astype(jnp.int32), values


def _even_chunk(rows: int, most: int) -> int:
    """Cuts rows in as few chunks as `most` allows, whose sizes are even and multiples of 16."""
    even = -(-rows // -(-rows // most))
    return min(-(-even // 16) * 16, most, rows)


def _own(ids: jax.Array, first: Any, scores: jax.Array) -> jax.Array:
    """Columns of `scores` of these ids; beyond them where a row lies on another device."""
    own = ids - first
    width = scores.shape[1]
    return jnp.where((own >= 0) & (own < width), own, width)


def check_top_k(k: int, available: int) -> None:
    """Raises UserError where more items are asked for than there are."""
    if k > available:
        raise UserError(
            f"expected top_k of at most {available}, the size of the catalogue, found {k}; pass a "
            "smaller --top_k"
        )
