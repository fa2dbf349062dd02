"""Tables cut by rows over a mesh: lookups and touched-row updates without a whole table anywhere.

Every device finds the distinct ids of its part of the batch and asks their owners for the rows;
after the gradient, the owners get one gradient a row and device, add equal ids up, and update
their own rows. Both exchanges run in rounds of a fixed capacity for each pair of devices: a round
covers a range of rows of every owner, as long as all devices' ids in it fit, and rounds go on
until every id is served. No id is ever dropped, and all gradients of one row meet in one round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from core.partitioning import BATCH_AXES, DATA, TABLE
from core.tables import TableOptimizer, TouchedRows

_BATCH, _ROWS, _ALL = PartitionSpec(BATCH_AXES), PartitionSpec(TABLE), PartitionSpec()
# Rows of a pair of devices and round: twice an even spread of the ids, and at least this many.
_LEAST_CAPACITY = 64


class ShardedRows(NamedTuple):
    """The distinct rows that a batch's ids name, by device; u places on each of P devices.

    Attributes:
      ids: int32 [P * u], ascending on each device; its first is padding's, the number of rows of
        the table marks places that are left over.
      places: int32 [B, m], the place of each id among its own device's.
      share: float32 [P * u], 1 over the number of devices that name the row: a sum over all
        places weighted by it counts every row of the table once.
    """

    ids: jax.Array
    places: jax.Array
    share: jax.Array


def touched(ids: jax.Array, table: jax.Array, mesh: Mesh) -> tuple[ShardedRows, jax.Array]:
    """Looks up the distinct rows of a batch.

    Args:
      ids: int32 [B, m] in [0, V), B cut over all devices.
      table: float [V, D], V cut over the axis `table`.

    Returns:
      The rows, and their values float [P * u, D].
    """
    num_rows = table.shape[0]

    def on_device(ids, shard):
        distinct, places = _distinct(ids.reshape(-1), num_rows)
        u, width = distinct.shape[0], shard.shape[1]

        def serve(exchange: _Round, carry):
            values, share = carry
            asked = jax.lax.all_to_all(exchange.ids, TABLE, 0, 0, tiled=True)
            everyone = jax.lax.all_gather(asked.reshape(-1), DATA).reshape(-1)
            answer = shard.at[_own_rows(asked, shard, num_rows)].get(mode="fill", fill_value=0.0)
            back = jax.lax.all_to_all(answer, TABLE, 0, 0, tiled=True)
            ordered = jnp.sort(everyone)
            count = jnp.searchsorted(ordered, asked, side="right") - jnp.searchsorted(
                ordered, asked, side="left"
            )
            counts = jax.lax.all_to_all(count, TABLE, 0, 0, tiled=True)
            values = values.at[exchange.places].set(back, mode="drop")
            return values, share.at[exchange.places].set(1.0 / counts, mode="drop")

        start = (jnp.zeros((u, width), shard.dtype), jnp.zeros(u, jnp.float32))
        values, share = _in_rounds(distinct, num_rows, mesh, serve, start)
        return distinct, places.reshape(ids.shape), share, values

    distinct, places, share, values = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(_BATCH, _ROWS),
        out_specs=(_BATCH, _BATCH, _BATCH, _BATCH),
        check_vma=False,
    )(ids, table)
    return ShardedRows(distinct, places, share), values


def spread(values: jax.Array, rows: ShardedRows, mesh: Mesh) -> jax.Array:
    """The vectors [B, m, D] of a batch's ids from the values [P * u, D] of its distinct rows."""
    return jax.shard_map(
        lambda values, places: values[places],
        mesh=mesh,
        in_specs=(_BATCH, _BATCH),
        out_specs=_BATCH,
        check_vma=False,
    )(values, rows.places)


def update(
    optimizer: TableOptimizer,
    rows: ShardedRows,
    gradient: jax.Array,
    table: jax.Array,
    state: Any,
    learning_rate: jax.Array,
    step: jax.Array,
    mesh: Mesh,
) -> tuple[jax.Array, Any]:
    """`optimizer.update` on the owners of the touched rows.

    Args:
      gradient: [P * u, D] with respect to the values of `touched`; gradients of a row that
        several devices name are added up first.
    """
    num_rows = table.shape[0]

    def on_device(distinct, gradient, shard, state, learning_rate, step):
        def serve(exchange: _Round, carry):
            shard, state = carry
            ids = jax.lax.all_to_all(exchange.ids, TABLE, 0, 0, tiled=True).reshape(-1)
            sent = gradient.at[exchange.places].get(mode="fill", fill_value=0.0)
            received = jax.lax.all_to_all(sent, TABLE, 0, 0, tiled=True)
            received = received.reshape(ids.shape[0], -1)
            # The copies of the tables must stay equal: each sees every copy's gradients.
            ids = jax.lax.all_gather(ids, DATA).reshape(-1)
            received = jax.lax.all_gather(received, DATA).reshape(ids.shape[0], -1)
            distinct_here, places = _distinct(ids, num_rows)
            summed = jnp.zeros((distinct_here.shape[0], received.shape[1]), received.dtype)
            summed = summed.at[places].add(received)
            own = _own_rows(distinct_here, shard, num_rows)
            local = TouchedRows(own, places)
            return optimizer.update(local, summed, shard, state, learning_rate, step)

        return _in_rounds(distinct, num_rows, mesh, serve, (shard, state))

    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(_BATCH, _BATCH, _ROWS, _ROWS, _ALL, _ALL),
        out_specs=(_ROWS, _ROWS),
        check_vma=False,
    )(rows.ids, gradient, table, state, learning_rate, step)


class _Round(NamedTuple):
    """What a device asks each owner in one round: int32 [S, C], padded with V and with u."""

    ids: jax.Array
    places: jax.Array


def _distinct(ids: jax.Array, num_rows: int) -> tuple[jax.Array, jax.Array]:
    """Distinct ids [min(n, V) + 1] ascending, 0 first whether named or not, and places [n].

    By sorting: a slot for every row, as on one device, would not fit where tables are sharded for
    their size. Ids of `num_rows` stand for nothing and get no place of their own that counts.
    """
    n = ids.shape[0]
    with_zero = jnp.concatenate([jnp.zeros(1, jnp.int32), ids])
    order = jnp.argsort(with_zero)
    ordered = with_zero[order]
    first = jnp.concatenate([jnp.zeros(1, bool), ordered[1:] != ordered[:-1]])
    numbers = jnp.cumsum(first, dtype=jnp.int32)
    size = min(n, num_rows) + 1
    distinct = jnp.full(size, num_rows, jnp.int32).at[numbers].set(ordered, mode="drop")
    places = jnp.zeros(n + 1, jnp.int32).at[order].set(numbers)
    return distinct, places[1:]


def _own_rows(ids: jax.Array, shard: jax.Array, num_rows: int) -> jax.Array:
    """Places of ids in this device's shard; beyond it where an id stands for nothing."""
    own = ids - jax.lax.axis_index(TABLE) * shard.shape[0]
    return jnp.where(ids < num_rows, own, shard.shape[0])


def _in_rounds(
    distinct: jax.Array,
    num_rows: int,
    mesh: Mesh,
    serve: Callable[[_Round, Any], Any],
    carry: Any,
) -> Any:
    """Runs `serve` until every distinct id of every device has been in a round, exactly once."""
    owners, u = mesh.shape[TABLE], distinct.shape[0]
    capacity = min(u, max(_LEAST_CAPACITY, -(-2 * u // owners)))
    per_owner = num_rows // owners
    ends = (jnp.arange(owners, dtype=jnp.int32) + 1) * per_owner

    def unserved(loop):
        start, _ = loop
        return (start < ends).any()

    def body(loop):
        start, carry = loop
        place = jnp.searchsorted(distinct, start).astype(jnp.int32)
        # The first id that does not fit here; the round ends before the lowest of all devices'.
        beyond = distinct.at[place + capacity].get(mode="fill", fill_value=num_rows)
        end = jax.lax.pmin(jnp.minimum(beyond, ends), BATCH_AXES)
        count = jnp.searchsorted(distinct, end).astype(jnp.int32) - place
        offsets = jnp.arange(capacity, dtype=jnp.int32)
        places = jnp.where(offsets < count[:, None], place[:, None] + offsets, u)
        ids = distinct.at[places].get(mode="fill", fill_value=num_rows)
        return end, serve(_Round(ids, places), carry)

    start = jnp.arange(owners, dtype=jnp.int32) * per_owner
    return jax.lax.while_loop(unserved, body, (start, carry))[1]
