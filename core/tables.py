"""Large embedding tables: rows are gathered, and only the rows a batch touched are updated.

A step never forms a gradient of a table's size: gradients are taken with respect to the gathered
rows [n, D], duplicates are added up on one occurrence of each id, and the optimizer reads and
writes that id's row and moments alone. Id 0 is padding: its row is zero and never updated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError


class IdGroups(NamedTuple):
    """Which occurrences of a batch's ids [n] name the same row.

    Attributes:
      ids: int32 [n].
      group: int32 [n], the position of each id's representative occurrence.
      first: bool [n], this occurrence is its id's representative, and the id is not padding.
    """

    ids: jax.Array
    group: jax.Array
    first: jax.Array


def group_ids(ids: jax.Array, num_rows: int) -> IdGroups:
    """Groups equal ids through a table of one integer a row, without a sort.

    Args:
      ids: int32 [n] in [0, num_rows).
      num_rows: rows of the table, padding included.
    """
    chex.assert_rank(ids, 1)
    positions = jnp.arange(ids.shape[0], dtype=jnp.int32)
    slots = jnp.zeros(num_rows, jnp.int32).at[ids].max(positions)
    group = slots[ids]
    return IdGroups(ids, group, (group == positions) & (ids != 0))


def gather(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of `table` [V, D] at `ids` [...] as [..., D]; padding reads its zero row."""
    return jnp.take(table, ids, axis=0, mode="clip")


def sum_duplicates(groups: IdGroups, row_gradients: jax.Array) -> jax.Array:
    """Adds the gradients [n, D] of equal ids on their representative; zero elsewhere."""
    chex.assert_rank(row_gradients, 2)
    return jnp.zeros_like(row_gradients).at[groups.group].add(row_gradients)


def check_ids(ids: np.ndarray, num_rows: int, name: str) -> None:
    """Host-side check.

    Raises:
      UserError: an id is negative or not below `num_rows`.
    """
    if ids.size and (ids.min() < 0 or ids.max() >= num_rows):
        worst = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise UserError(
            f"expected {name} ids from 0 to {num_rows - 1}, found {worst}; prepare the data again"
        )


Update = Callable[..., tuple[jax.Array, Any]]


class TableOptimizer(NamedTuple):
    """`init(table) -> state`; `update(groups, summed, table, state, learning_rate, step)`.

    `summed` comes from `sum_duplicates`; `step` counts updates from 0.
    """

    init: Callable[[jax.Array], Any]
    update: Update


class _Rule(NamedTuple):
    """An optimizer on rows: number of moments, and (g, moments, lr, step) -> (delta, moments)."""

    moments: int
    start: float
    apply: Callable[..., tuple[jax.Array, tuple[jax.Array, ...]]]


def _sgd() -> _Rule:
    def apply(g, moments, learning_rate, step):
        del step
        return -learning_rate * g, moments

    return _Rule(0, 0.0, apply)


def _adagrad(initial: float = 0.1, eps: float = 1e-7) -> _Rule:
    def apply(g, moments, learning_rate, step):
        del step
        (total,) = moments
        total = total + g * g
        return -learning_rate * g / jnp.sqrt(total + eps), (total,)

    return _Rule(1, initial, apply)


def _adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> _Rule:
    def apply(g, moments, learning_rate, step):
        mean, square = moments
        mean = b1 * mean + (1 - b1) * g
        square = b2 * square + (1 - b2) * g * g
        count = step + 1
        unbiased = mean / (1 - b1**count)
        scale = jnp.sqrt(square / (1 - b2**count)) + eps
        return -learning_rate * unbiased / scale, (mean, square)

    return _Rule(2, 0.0, apply)


_RULES: dict[str, Callable[..., _Rule]] = {"sgd": _sgd, "adagrad": _adagrad, "adam": _adam}


def touched_rows(kind: str, **settings: float) -> TableOptimizer:
    """An optimizer that reads and writes touched rows only.

    Args:
      kind: 'sgd' and 'adagrad' agree exactly with their dense forms. 'adam' is the lazy variant:
        a row's moments decay only in the steps that touch it, while bias correction counts all
        steps, so rows of rare ids differ from dense Adam.
      **settings: `initial`, `eps` (adagrad); `b1`, `b2`, `eps` (adam).
    """
    rule = _RULES[kind](**settings)

    def init(table):
        return tuple(jnp.full_like(table, rule.start) for _ in range(rule.moments))

    def update(groups, summed, table, state, learning_rate, step):
        chex.assert_shape(summed, (groups.ids.shape[0], table.shape[1]))
        # Every other occurrence points beyond the table, where scatters are dropped.
        rows = jnp.where(groups.first, groups.ids, table.shape[0])
        moments = tuple(gather(m, groups.ids) for m in state)
        delta, moments = rule.apply(summed, moments, learning_rate, step)
        table = table.at[rows].add(delta, mode="drop")
        state = tuple(
            whole.at[rows].set(new, mode="drop") for whole, new in zip(state, moments, strict=True)
        )
        return table, state

    return TableOptimizer(init, update)


def dense(kind: str, **settings: float) -> TableOptimizer:
    """The same rules from a gradient of the whole table, for parity; `groups` is ignored."""
    rule = _RULES[kind](**settings)

    def init(table):
        return tuple(jnp.full_like(table, rule.start) for _ in range(rule.moments))

    def update(groups, gradient, table, state, learning_rate, step):
        del groups
        chex.assert_equal_shape([gradient, table])
        delta, state = rule.apply(gradient.at[0].set(0.0), state, learning_rate, step)
        return table + delta, state

    return TableOptimizer(init, update)
