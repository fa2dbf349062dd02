"""Computes ranking metrics of one relevant item among candidates, with ties taken in expectation.

A metric is a function of two counts: how many candidates score above the target, and how many tie
with it. Tied candidates come in a random order, so a constant scorer over 100 candidates gets
exactly hr@10 = .10. Names carry the protocol: 'ndcg@5/neg99', 'hr@10/full'.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Annotated

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from core.errors import UserError
from core.settings import NamesOnce, Rule

Array = jax.Array | np.ndarray
Metric = Callable[[Array, Array], jax.Array]


def target_ranks(
    scores: Array, target: int = 0, valid: Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Counts the candidates above and tied with the target's column.

    Args:
      scores: float [..., N].
      target: column of the relevant item.
      valid: bool [..., N]; False leaves a candidate out. The target is always in.

    Returns:
      (above, tied), int32 [...]; the target itself is in neither.
    """
    if valid is not None:
        chex.assert_equal_shape([scores, valid])
    others = jnp.ones(scores.shape[-1], bool).at[target].set(False)
    counted = others if valid is None else others & valid
    reference = scores[..., target, None]
    above = ((scores > reference) & counted).sum(-1)
    tied = ((scores == reference) & counted).sum(-1)
    return above.astype(jnp.int32), tied.astype(jnp.int32)


def _hit_rate(above: Array, tied: Array, *, cutoff: int) -> jax.Array:
    return jnp.clip(cutoff - above, 0, tied + 1) / (tied + 1)


def _gained(above: Array, tied: Array, gains: np.ndarray) -> jax.Array:
    """Returns the mean gain of the ranks that the target takes; ranks beyond the last gain 0."""
    # gained[r] is the sum of the gains of the first r ranks.
    gained = jnp.asarray(np.concatenate([[0.0], np.cumsum(gains)]), jnp.float32)
    first = jnp.minimum(above, len(gains))
    last = jnp.minimum(above + tied + 1, len(gains))
    return (gained[last] - gained[first]) / (tied + 1)


def _ndcg(above: Array, tied: Array, *, cutoff: int) -> jax.Array:
    return _gained(above, tied, 1.0 / np.log2(np.arange(2, cutoff + 2)))


def _reciprocal_rank(above: Array, tied: Array, *, cutoff: int) -> jax.Array:
    return _gained(above, tied, 1.0 / np.arange(1, cutoff + 1))


_FAMILIES: dict[str, Callable[..., jax.Array]] = {
    "hr": _hit_rate,
    "ndcg": _ndcg,
    "mrr": _reciprocal_rank,
}


_NAME = re.compile(rf"({'|'.join(_FAMILIES)})@([1-9][0-9]*)")
_SUCH = f"a metric such as hr@1, hr@10, ndcg@5 (families: {', '.join(_FAMILIES)})"
# Of settings: a metric's name, and several.
MetricName = Annotated[str, Rule(f"as {_SUCH}", _NAME.fullmatch, "correct the name")]
MetricNames = Annotated[tuple[MetricName, ...], NamesOnce(least=1)]


def metric(name: str) -> Metric:
    """Returns the metric 'hr@K', 'ndcg@K' or 'mrr@K': (above [...], tied [...]) -> float32 [...].

    Raises:
      UserError: no metric has that name.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise UserError(f"expected {_SUCH}, found {name!r}; correct the name")
    return functools.partial(_FAMILIES[match[1]], cutoff=int(match[2]))


def means_of_users(values: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Returns means [U] over every user's own examples, of values [E] of examples of users [E]."""
    place = np.unique(users, return_inverse=True)[1]
    return np.bincount(place, values) / np.bincount(place)


def half_interval(gains: np.ndarray) -> float:
    """Returns half of the 95% interval of the mean of one gain a user, [U], by Student's t.

    Raises:
      ValueError: fewer than two users, whose spread nobody knows.
    """
    if len(gains) < 2:
        raise ValueError(f"expected gains of two users or more, found {len(gains)}")
    quantile = scipy.special.stdtrit(len(gains) - 1, 0.975)
    return float(quantile * gains.std(ddof=1) / np.sqrt(len(gains)))


def full_name(name: str, protocol: str) -> str:
    """Names a metric with its protocol: 'ndcg@5' against 'neg99' is 'ndcg@5/neg99'."""
    return f"{name}/{protocol}"


class Sums:
    """Sums and counts of metrics over examples; merges across batches and hosts.

    Args:
      names: metric names such as 'hr@10'.
    """

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)
        self._metrics = {name: metric(name) for name in self.names}
        self._above: list[np.ndarray] = []
        self._tied: list[np.ndarray] = []
        self._best: list[np.ndarray] = []

    def add(
        self,
        above: np.ndarray,
        tied: np.ndarray,
        mask: np.ndarray,
        broken: np.ndarray,
        best: np.ndarray | None = None,
    ) -> None:
        """Counts a batch.

        Args:
          above, tied: int [B], from `target_ranks`.
          mask: [B]; rows of 0 are padding and count nothing.
          broken: bool [B]; a score of the row is NaN.
          best: int [B, k], the best items of the ranking, 0 where it has fewer; of all batches or
            of none.

        Raises:
          FloatingPointError: a row that counts has a NaN score.
        """
        chex.assert_equal_shape([above, tied, mask, broken])
        real = np.asarray(mask) > 0
        if np.any(np.asarray(broken) & real):
            raise FloatingPointError(
                f"NaN scores in {int(np.sum(broken & real))} of {int(real.sum())} examples; the "
                "ranking would be meaningless"
            )
        self._above.append(np.asarray(above)[real])
        self._tied.append(np.asarray(tied)[real])
        if best is not None:
            self._best.append(np.asarray(best, np.int32)[real])

    def merge(self, other: Sums) -> None:
        """Adds the examples of another host or part."""
        if self.names != other.names:
            raise ValueError(f"expected metrics {self.names}, found {other.names}")
        self._above += other._above
        self._tied += other._tied
        self._best += other._best

    @property
    def count(self) -> int:
        return sum(len(part) for part in self._above)

    def per_example(self) -> dict[str, np.ndarray]:
        """Returns float32 [E] per metric, in the order in which examples were added."""
        above = np.concatenate([*self._above, np.zeros(0, np.int32)]).astype(np.int32)
        tied = np.concatenate([*self._tied, np.zeros(0, np.int32)]).astype(np.int32)
        return {n: np.asarray(f(above, tied), np.float32) for n, f in self._metrics.items()}

    def rankings(self) -> dict[str, np.ndarray]:
        """Returns what the metrics are of: int32 `above` and `tied` [E], and `best` [E, k] if kept.

        They are in the order in which examples were added.
        """
        none = np.zeros(0, np.int32)
        arrays = {
            "above": np.concatenate([*self._above, none]).astype(np.int32),
            "tied": np.concatenate([*self._tied, none]).astype(np.int32),
        }
        return arrays | ({"best": np.concatenate(self._best)} if self._best else {})

    def means(self) -> dict[str, float]:
        """Means over all examples.

        Raises:
          ValueError: nothing was added.
        """
        if not self.count:
            raise ValueError("expected at least one example, found none")
        return {n: float(np.mean(v, dtype=np.float64)) for n, v in self.per_example().items()}
