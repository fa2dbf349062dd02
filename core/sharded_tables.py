"""Tables cut by rows over a mesh: lookups and touched-row updates without a whole table anywhere.

Every device finds the distinct ids of its part of the batch and asks their owners for the rows;
after the gradient, the owners get one gradient a row and device, add equal ids up, and update
their own rows. Both exchanges run in rounds of a fixed capacity for each pair of devices: a round
covers a range of rows of every owner, as long as all devices' ids in it fit, and rounds go on
until every id is served. No id is ever dropped, and all gradients of one row meet in one round.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from core.partitioning import BATCH_AXES, DATA, MODEL
from core.tables import TableOptimizer, TouchedRows, distinct_beyond
from core.tables import touched as local_touched

_BATCH, _ROWS, _ALL = PartitionSpec(BATCH_AXES), PartitionSpec(MODEL), PartitionSpec()


class Limits(NamedTuple):
    """Bounds the buffers of an exchange; results do not depend on them.

    Attributes:
      most_rows: of a device and round. A pair of devices exchanges twice an even spread of the ids,
        but no more than these allow, and at least `least_capacity`.
      least_capacity: rows of a pair of devices and round.
      most_scattered: rows that one scatter may add: compilers for TPUs sort longer lists first,
        which takes them minutes to compile and memory to run.
    """

    most_rows: int = 2**14
    least_capacity: int = 64
    most_scattered: int = 2**14


_LIMITS = Limits()


class ShardedRows(NamedTuple):
    """Holds the distinct rows that a batch's ids name, by device; u places on each of P devices.

    Attributes:
      ids: int32 [P * u]; the first of each device is padding's, the number of rows of the table
        marks places that are left over.
      places: int32 [B, m], the place of each id among its own device's.
      share: float32 [P * u], 1 over the number of devices that name the row: a sum over all
        places weighted by it counts every row of the table once.
    """

    ids: jax.Array
    places: jax.Array
    share: jax.Array


def touched(
    ids: jax.Array, table: jax.Array, mesh: Mesh, pack: int = 1, limits: Limits = _LIMITS
) -> tuple[ShardedRows, jax.Array]:
    """Looks up the distinct rows of a batch.

    Args:
      ids: int32 [B, m] in [0, V), B cut over all devices.
      table: float [V/p, p*D], rows cut over the axis `model`.
      pack: p.

    Returns:
      The rows, and their values float [P * u, D].
    """
    num_rows = table.shape[0] * pack

    def on_device(ids, shard):
        distinct, places = _distinct(ids.reshape(-1), num_rows)
        u, width, held = distinct.shape[0], shard.shape[1] // pack, shard.shape[0] * pack

        def serve(exchange: _Round, carry):
            values, share = carry
            asked = jax.lax.all_to_all(exchange.ids, MODEL, 0, 0, tiled=True)
            own = _own_rows(asked, held)
            answer = shard.at[own // pack].get(mode="fill", fill_value=0.0)
            answer = _part(answer, own % pack, pack)
            back = jax.lax.all_to_all(answer, MODEL, 0, 0, tiled=True)
            # Other copies of the tables are asked by other devices; all of these share a row.
            everyone = jax.lax.all_gather(own, DATA, axis=0)
            counts = jnp.zeros(held, jnp.int32).at[everyone].add(1, mode="drop")
            askers = jax.lax.all_to_all(
                counts.at[own].get(mode="fill", fill_value=1), MODEL, 0, 0, tiled=True
            )
            return (
                _put(values, exchange.places.reshape(-1), back.reshape(-1, width)),
                _put(share, exchange.places.reshape(-1), 1.0 / askers.reshape(-1)),
            )

        start = (jnp.zeros((u, width), shard.dtype), jnp.zeros(u, jnp.float32))
        values, share = _in_rounds(distinct, num_rows, mesh, serve, start, limits)
        return distinct, places.reshape(ids.shape), share, values

    distinct, places, share, values = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(_BATCH, _ROWS),
        out_specs=(_BATCH, _BATCH, _BATCH, _BATCH),
        check_vma=False,
    )(ids, table)
    return ShardedRows(distinct, places, share), values


def spread(values: jax.Array, rows: ShardedRows, mesh: Mesh, limits: Limits = _LIMITS) -> jax.Array:
    """Returns vectors [B, m, D] of a batch's ids from values [P * u, D] of its distinct rows."""
    return jax.shard_map(
        functools.partial(_spread_on_device, most_scattered=limits.most_scattered),
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
    limits: Limits = _LIMITS,
) -> tuple[jax.Array, Any]:
    """Runs `optimizer.update` on the owners of the touched rows.

    Args:
      table, state: [V/p, p*D], packed as for `touched`.
      gradient: [P * u, D] with respect to the values of `touched`; gradients of a row that
        several devices name are added up first.
    """
    pack = table.shape[1] // gradient.shape[1]
    num_rows = table.shape[0] * pack

    def on_device(distinct, gradient, shard, state, learning_rate, step):
        held = shard.shape[0] * pack

        def serve(exchange: _Round, carry):
            shard, state = carry
            ids = jax.lax.all_to_all(exchange.ids, MODEL, 0, 0, tiled=True).reshape(-1)
            sent = gradient.at[exchange.places].get(mode="fill", fill_value=0.0)
            received = jax.lax.all_to_all(sent, MODEL, 0, 0, tiled=True)
            received = received.reshape(ids.shape[0], -1)
            # The copies of the tables must stay equal: each sees every copy's gradients.
            ids = jax.lax.all_gather(ids, DATA).reshape(-1)
            received = jax.lax.all_gather(received, DATA).reshape(ids.shape[0], -1)
            own = _own_rows(ids, held)
            # Counted from 1, so that ids that stand for nothing are the padding of `touched`.
            packed = jnp.where(own < held, own // pack + 1, 0)
            unique = local_touched(packed, shard.shape[0] + 1)
            u = unique.ids.shape[0]
            width = received.shape[1]
            lanes = jnp.arange(pack * width) // width
            received = jnp.tile(received, (1, pack))
            received = jnp.where(lanes == (own % pack)[:, None], received, 0.0)
            summed = jnp.zeros((u, shard.shape[1]), received.dtype)
            summed = summed.at[unique.places].add(received)
            named = jnp.zeros(u * pack, bool).at[unique.places * pack + own % pack].set(True)
            return optimizer.update(
                TouchedRows(unique.ids - 1, unique.places),
                summed,
                shard,
                state,
                learning_rate,
                step,
                jnp.repeat(named.reshape(u, pack), width, 1),
            )

        return _in_rounds(distinct, num_rows, mesh, serve, (shard, state), limits)

    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(_BATCH, _BATCH, _ROWS, _ROWS, _ALL, _ALL),
        out_specs=(_ROWS, _ROWS),
        check_vma=False,
    )(rows.ids, gradient, table, state, learning_rate, step)


class _Round(NamedTuple):
    """Holds what a device asks each owner in one round: int32 [S, C], padded with -1 and with u."""

    ids: jax.Array
    places: jax.Array


def _distinct(ids: jax.Array, num_rows: int) -> tuple[jax.Array, jax.Array]:
    """Returns distinct ids [min(n, V) + 1], 0 first whether named or not, and places [n].

    By hashing with linear probing: a slot for every row, as on one device, would not fit where
    tables are cut for their size, and compilers for TPUs take minutes over long sorts. Equal ids
    probe in step, so that each claims one slot.
    """
    n = ids.shape[0]
    bits = max(1, (2 * n - 1).bit_length())
    slots = 2**bits
    start = (ids.astype(jnp.uint32) * jnp.uint32(2654435769)) >> (32 - bits)

    def unplaced(loop):
        return ~loop[2].all()

    def probe(loop):
        claimed, slot, placed = loop
        free = claimed[slot] == 0
        wanted = jnp.where(free & ~placed, slot, slots)
        claimed = claimed.at[wanted].max(ids, mode="drop")
        placed |= claimed[slot] == ids
        return claimed, jnp.where(placed, slot, (slot + 1) % slots), placed

    loop = (jnp.zeros(slots, jnp.int32), start.astype(jnp.int32), ids == 0)
    claimed, slot, _ = jax.lax.while_loop(unplaced, probe, loop)
    numbers = _running_sum(claimed > 0)
    size = min(n, num_rows) + 1
    distinct = jnp.full(size, num_rows, jnp.int32).at[0].set(0)
    distinct = _put(distinct, jnp.where(claimed > 0, numbers, size), claimed)
    return distinct, jnp.where(ids == 0, 0, numbers[slot])


def _running_sum(flags: jax.Array) -> jax.Array:
    """Computes the int32 cumulative sum of bool [n], n a power of two, by blocks: compilers for
    TPUs take seconds for one sum of all.
    """
    blocks = flags.reshape(-1, min(flags.shape[0], 512))
    within = jnp.cumsum(blocks, 1, dtype=jnp.int32)
    before = jnp.cumsum(within[:, -1], dtype=jnp.int32) - within[:, -1]
    return (within + before[:, None]).reshape(-1)


def _put(target: jax.Array, places: jax.Array, values: jax.Array) -> jax.Array:
    """Puts `values` [n, ...] at places [n] that differ wherever they lie within `target`."""
    places = distinct_beyond(places, target.shape[0])
    return target.at[places].set(values, mode="drop", unique_indices=True)


def _own_rows(ids: jax.Array, held: int) -> jax.Array:
    """Numbers of ids among the rows that this device holds; `held` for ids of -1, which stand for
    nothing."""
    return jnp.where(ids < 0, held, ids - jax.lax.axis_index(MODEL) * held)


def _part(packed: jax.Array, part: jax.Array, pack: int) -> jax.Array:
    """Returns the rows [..., D] that lie at `part` [...] of packed rows [..., p*D]."""
    parts = jnp.split(packed, pack, -1)
    return jax.lax.select_n(jnp.broadcast_to(part[..., None], parts[0].shape), *parts)


@functools.partial(jax.custom_vjp, nondiff_argnames=("most_scattered",))
def _spread_on_device(values: jax.Array, places: jax.Array, most_scattered: int) -> jax.Array:
    return values[places]


def _spread_forward(values, places, most_scattered):
    return values[places], (values, places)


def _spread_backward(most_scattered, residuals, gradient):
    values, places = residuals
    flat = gradient.reshape(-1, gradient.shape[-1])
    return _add_rows(jnp.zeros_like(values), places.reshape(-1), flat, most_scattered), None


_spread_on_device.defvjp(_spread_forward, _spread_backward)


def _add_rows(target: jax.Array, places: jax.Array, values: jax.Array, most: int) -> jax.Array:
    """Adds `values` [n, D] to `target` [u, D] at `places` [n] < u, a chunk at a time."""
    n = places.shape[0]
    chunk = min(n, most)
    if chunk == n:
        return target.at[places].add(values)

    def add_chunk(number, target):
        # The last chunk goes back over rows of the one before, which are not added again.
        start = jnp.minimum(number * chunk, n - chunk)
        at = jax.lax.dynamic_slice(places, (start,), (chunk,))
        at = jnp.where(start + jnp.arange(chunk) < number * chunk, target.shape[0], at)
        part = jax.lax.dynamic_slice(values, (start, 0), (chunk, values.shape[1]))
        return target.at[at].add(part, mode="drop")

    return jax.lax.fori_loop(0, -(-n // chunk), add_chunk, target)


def _in_rounds(
    distinct: jax.Array,
    num_rows: int,
    mesh: Mesh,
    serve: Callable[[_Round, Any], Any],
    carry: Any,
    limits: Limits,
) -> Any:
    """Runs `serve` until every distinct id of every device has been in a round, exactly once."""
    owners, u = mesh.shape[MODEL], distinct.shape[0]
    capacity = min(-(-2 * u // owners), limits.most_rows // mesh.size)
    capacity = min(u, max(limits.least_capacity, capacity))
    per_owner = num_rows // owners
    first = jnp.arange(owners, dtype=jnp.int32) * per_owner
    # Padding is asked of no one; its value is zero as it is.
    wanted = (distinct > 0) & (distinct < num_rows)
    owned = wanted[:, None] & (distinct[:, None] // per_owner == jnp.arange(owners))

    def between(start, end):
        """Which distinct ids each owner has from row `start` to before `end`: bool [u, S]."""
        return owned & (distinct[:, None] >= start) & (distinct[:, None] < end)

    def fits(start, end):
        return between(start, end).sum(0) <= capacity

    def body(loop):
        start, carry = loop

        def halve(_, bounds):
            low, high = bounds
            middle = low + (high - low + 1) // 2
            good = fits(start, middle)
            return jnp.where(good, middle, low), jnp.where(good, high, middle - 1)

        ends = first + per_owner
        # One row always fits, because a device asks for it once.
        low = jnp.where(fits(start, ends), ends, jnp.minimum(start + 1, ends))
        end, _ = jax.lax.fori_loop(0, per_owner.bit_length(), halve, (low, ends))
        end = jax.lax.pmin(end, BATCH_AXES)
        chosen = between(start, end)
        number = jnp.cumsum(chosen, 0, dtype=jnp.int32) - 1
        cell = jnp.where(chosen, jnp.arange(owners) * capacity + number, owners * capacity)
        # An id has one owner, so one cell.
        cell = cell.min(1)
        ids = _put(jnp.full(owners * capacity, -1, jnp.int32), cell, distinct)
        numbers = jnp.arange(u, dtype=jnp.int32)
        places = _put(jnp.full(owners * capacity, u, jnp.int32), cell, numbers)
        shape = (owners, capacity)
        return end, serve(_Round(ids.reshape(shape), places.reshape(shape)), carry)

    def unserved(loop):
        start, _ = loop
        return (start < first + per_owner).any()

    return jax.lax.while_loop(unserved, body, (first, carry))[1]
