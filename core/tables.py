"""Reads and updates large embedding tables: rows are gathered, and only touched rows are updated.

A step never forms a gradient of a table's size: the distinct rows that a batch names are gathered
once [u, D], the batch's fields index into them, gradients are taken with respect to them, and the
optimizer reads and writes these rows and their moments alone. Id 0 is padding: its row is zero and
never updated.

A table may be packed: p = `rows_together(D)` rows of it in one row of [V/p, p*D], id i in row
i // p. A TPU holds 128 lanes whatever is asked, and its compiler copies a narrower table whole, to
twice its size for D = 64, before it reads a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

LANES = 128


def rows_together(width: int) -> int:
    """Returns p, how many rows [D] fill one row of 128 lanes; 1 where D does not divide 128."""
    return LANES // width if LANES % width == 0 else 1


class TouchedRows(NamedTuple):
    """Holds the distinct rows that a batch's ids [n] name.

    Attributes:
      ids: int32 [u], u = min(n, V) + 1: place 0 is padding's, distinct ids follow, and places that
        are left over hold V, beyond the table.
      places: int32 [n], the place of each id among `ids`.
    """

    ids: jax.Array
    places: jax.Array


def touched(ids: jax.Array, num_rows: int) -> TouchedRows:
    """Finds distinct ids through a table of one integer a row, without a sort.

    Args:
      ids: int32 [n] in [0, V).
      num_rows: V, padding included.
    """
    chex.assert_rank(ids, 1)
    n = ids.shape[0]
    positions = jnp.arange(n, dtype=jnp.int32)
    slots = jnp.zeros(num_rows, jnp.int32).at[ids].max(positions)
    representative = slots[ids]
    first = (representative == positions) & (ids != 0)
    numbers = jnp.cumsum(first, dtype=jnp.int32)
    places = jnp.where(ids == 0, 0, numbers[representative])
    size = min(n, num_rows) + 1
    distinct = jnp.full(size, num_rows, jnp.int32).at[0].set(0)
    distinct = distinct.at[jnp.where(first, numbers, size)].set(ids, mode="drop")
    return TouchedRows(distinct, places)


def distinct_beyond(ids: jax.Array, limit: int) -> jax.Array:
    """Makes ids [n] from `limit` on different from each other; they stay beyond it."""
    return jnp.where(ids >= limit, limit + jnp.arange(ids.shape[0], dtype=ids.dtype), ids)


def gather_touched(table: jax.Array, rows: TouchedRows) -> jax.Array:
    """Gathers the touched rows [u, D] of `table` [V, D]; zero at places that are left over."""
    return table.at[rows.ids].get(mode="fill", fill_value=0.0)


def gather(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of `table` [V, D] at `ids` [...] as [..., D]; padding reads its zero row."""
    return jnp.take(table, ids, axis=0, mode="clip")


Update = Callable[..., tuple[jax.Array, Any]]


class TableOptimizer(NamedTuple):
    """Joins `init(table) -> state` and `update(rows, gradient, table, state, learning_rate, step)`.

    `gradient` [u, D] is with respect to `gather_touched`, so that gradients of equal ids are
    already added up; `step` counts updates from 0. Touched rows take `named` too, bool [u, D]:
    what of a packed row the batch names; the rest keeps its values and moments bit for bit.
    """

    init: Callable[[jax.Array], Any]
    update: Update


class _Rule(NamedTuple):
    """Describes an optimizer on rows: number of moments, and (g, moments, lr, step) -> (delta,
    moments).
    """

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
    """Returns an optimizer that reads and writes touched rows only.

    Args:
      kind: 'sgd' and 'adagrad' agree exactly with their dense forms. 'adam' is the lazy variant:
        a row's moments decay only in the steps that touch it, while bias correction counts all
        steps, so rows of rare ids differ from dense Adam.
      **settings: `initial`, `eps` (adagrad); `b1`, `b2`, `eps` (adam).
    """
    rule = _RULES[kind](**settings)

    def init(table):
        return tuple(jnp.full_like(table, rule.start) for _ in range(rule.moments))

    def update(rows, gradient, table, state, learning_rate, step, named=None):
        chex.assert_shape(gradient, (rows.ids.shape[0], table.shape[1]))
        # Padding joins the places beyond the table, where scatters are dropped; these differ too,
        # so that compilers need not sort the rows first.
        ids = distinct_beyond(rows.ids.at[0].set(table.shape[0]), table.shape[0])
        held = tuple(m.at[ids].get(mode="fill", fill_value=0.0) for m in state)
        delta, moments = rule.apply(gradient, held, learning_rate, step)
        if named is not None:
            delta = jnp.where(named, delta, 0.0)
            moments = tuple(jnp.where(named, new, old) for new, old in zip(moments, held))
        table = table.at[ids].add(delta, mode="drop", unique_indices=True)
        state = tuple(
            whole.at[ids].set(new, mode="drop", unique_indices=True)
            for whole, new in zip(state, moments, strict=True)
        )
        return table, state

    return TableOptimizer(init, update)


def dense(kind: str, **settings: float) -> TableOptimizer:
    """Returns an optimizer of the same rules from a whole table's gradient; it ignores `rows`."""
    rule = _RULES[kind](**settings)

    def init(table):
        return tuple(jnp.full_like(table, rule.start) for _ in range(rule.moments))

    def update(rows, gradient, table, state, learning_rate, step):
        del rows
        chex.assert_equal_shape([gradient, table])
        delta, state = rule.apply(gradient.at[0].set(0.0), state, learning_rate, step)
        return table + delta, state

    return TableOptimizer(init, update)
