"""Reads the embedding tables of 3.2.1 for a batch.

Tables stay outside the network's parameters: a step gathers the rows that its batch names, takes
gradients with respect to those rows only, and updates only them (`core.tables`). With a partition
they are cut by rows over its mesh, and packed (`core.sharded_tables`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from core import partitioning, sharded_tables
from core import tables as table_lib
from core.partitioning import Partition

Tables = dict[str, jax.Array]

# TouchedRows on one device, ShardedRows on a mesh.
Rows = Any

# Tables, their moments and their snapshots lie by rows; the network is copied to every device.
PARTITION_RULES: partitioning.Rules = (
    (r"(^|/)(tables|table_states)/", PartitionSpec(partitioning.MODEL)),
)

# Which fields of a batch hold ids of which table; `query` is in batches with search examples.
TABLE_FIELDS: dict[str, tuple[str, ...]] = {
    "user": ("user",),
    "item": ("rec_items", "clicked_items", "candidates"),
    "word": ("query_words", "query"),
}
# Fields of the last examples of a batch alone.
LAST_ROWS = ("query",)


def init_tables(
    key: jax.Array,
    *,
    num_users: int,
    num_items: int,
    num_words: int,
    width: int,
    scale: float,
    user_scale: float | None = None,
    partition: Partition | None = None,
) -> Tables:
    """Draws normal rows of standard deviation `scale`; row 0 (padding) is zero.

    Args:
      user_scale: of users' rows; None for `scale`.
      partition: the mesh that the tables are for. It may ask for rows that no id names, and for
        packed rows; the numbers of the rest stay the same.

    Returns:
      float32 tables `user` [U+2, D] (the last row is shared by users not seen in training),
      `item` [V+1, D], `word` [W+1, D], or packed [rows/p, p*D].
    """
    row_multiple, pack = (
        (1, 1) if partition is None else (partition.row_multiple, partition.rows_together)
    )
    sizes = {"user": num_users + 2, "item": num_items + 1, "word": num_words + 1}
    keys = dict(zip(sizes, jax.random.split(key, len(sizes)), strict=True))

    def table(name):
        rows = -(-sizes[name] // row_multiple) * row_multiple // pack
        spread = scale if name != "user" or user_scale is None else user_scale
        drawn = spread * jax.random.normal(keys[name], (rows, pack * width), jnp.float32)
        number = jnp.arange(rows)[:, None] * pack + jnp.arange(pack * width) // width
        return jnp.where((number > 0) & (number < sizes[name]), drawn, 0.0)

    return {name: table(name) for name in sizes}


def with_rows(table: jax.Array, rows: np.ndarray, sharding: Any = None) -> jax.Array:
    """Returns a table with other rows where these are not NaN.

    Args:
      table: float32, packed and cut over devices or not.
      rows: float32 [n, D], from row 0 on; n at most as many as the table has.
      sharding: of the table; None on one device.
    """
    more = table.size // rows.shape[1] - len(rows)
    rows = np.pad(rows, ((0, more), (0, 0)), constant_values=np.nan).reshape(table.shape)
    if sharding is None:
        return _rows_or_drawn(jnp.asarray(rows), table)
    # Each process holds all rows, and gives each of its devices the part that is there.
    placed = jax.make_array_from_callback(table.shape, sharding, lambda part: rows[part])
    return jax.jit(_rows_or_drawn, out_shardings=sharding)(placed, table)


def _rows_or_drawn(rows: jax.Array, drawn: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(rows), drawn, rows)


def with_item_words(tables: Tables, item_words: np.ndarray | None) -> Tables:
    """Returns the tables with every item's row plus the mean of its words' rows.

    Gradients reach the words through whole tables, so that training needs dense table updates.

    Args:
      item_words: word ids int32 [V+1, n], 0 padded; None leaves the tables as they are.
    """
    if item_words is None:
        return tables
    words = tables["word"][item_words].sum(1)
    count = jnp.maximum((item_words != 0).sum(1, keepdims=True), 1)
    return tables | {"item": tables["item"].at[: len(words)].add(words / count)}


def flat_ids(batch: dict[str, Any], tables: Iterable[str]) -> dict[str, jax.Array]:
    """Returns per table the ids of all its fields in one int32 vector [n], padding included."""
    return {
        table: jnp.concatenate([jnp.ravel(batch[field]) for field in _fields(table, batch)])
        for table in tables
    }


def _fields(table: str, batch: dict[str, Any]) -> list[str]:
    return [field for field in TABLE_FIELDS[table] if field in batch]


def touched_rows(
    tables: Tables, batch: dict[str, Any], partition: Partition | None = None
) -> tuple[dict[str, Rows], dict[str, jax.Array]]:
    """Returns per table the distinct rows that the batch names, and their values [u, D]."""
    if partition is not None:
        mesh, pack = partition.mesh, partition.rows_together
        touched = {
            name: sharded_tables.touched(_ids_by_example(batch, name), table, mesh, pack)
            for name, table in tables.items()
        }
        return {n: f[0] for n, f in touched.items()}, {n: f[1] for n, f in touched.items()}
    ids = flat_ids(batch, tables)
    rows = {name: table_lib.touched(ids[name], table.shape[0]) for name, table in tables.items()}
    return rows, {name: table_lib.gather_touched(tables[name], rows[name]) for name in tables}


def fields_of(
    values: dict[str, jax.Array],
    rows: dict[str, Rows],
    batch: dict[str, Any],
    partition: Partition | None = None,
) -> dict[str, jax.Array]:
    """Returns the fields `user` [B, D], `rec_items` [B, L, D] and so on from the touched rows'
    values.
    """
    if partition is None:
        return _cut({name: values[name][rows[name].places] for name in values}, batch)
    fields = {}
    for name, value in values.items():
        vectors = sharded_tables.spread(value, rows[name], partition.mesh)
        start = 0
        for field in _fields(name, batch):
            shape = jnp.shape(batch[field])
            examples = shape[0] if field in LAST_ROWS else len(vectors)
            size = math.prod(shape) // examples
            part = vectors[len(vectors) - examples :, start : start + size]
            fields[field] = part.reshape(*shape, -1)
            start += size
    return fields


def counted_once(values: dict[str, jax.Array], rows: dict[str, Rows]) -> list[jax.Array]:
    """Scales the touched rows [u, D] of every table, so that their squares add up to each row's
    square once, however many devices hold it.
    """
    return [
        value if isinstance(held, table_lib.TouchedRows) else value * jnp.sqrt(held.share)[:, None]
        for value, held in ((values[name], rows[name]) for name in values)
    ]


def _ids_by_example(batch: dict[str, Any], table: str) -> jax.Array:
    """Returns the ids of a table's fields, int32 [V, m], so that a part of the batch has its
    own: V examples, or rows of windows with the fields of all their targets.
    """
    examples = jnp.shape(batch["rec_items"])[0]

    def whole(field):
        if field in LAST_ROWS:
            ids = jnp.reshape(batch[field], (jnp.shape(batch[field])[0], -1))
            return jnp.pad(ids, ((examples - ids.shape[0], 0), (0, 0)))
        return jnp.reshape(batch[field], (examples, -1))

    return jnp.concatenate([whole(field) for field in _fields(table, batch)], 1)


def _cut(flat: dict[str, jax.Array], batch: dict[str, Any]) -> dict[str, jax.Array]:
    """Cuts the rows [n, D] of `flat_ids` into the batch's fields."""
    fields = {}
    for table, vectors in flat.items():
        start = 0
        for field in _fields(table, batch):
            shape = jnp.shape(batch[field])
            size = int(jnp.size(batch[field]))
            fields[field] = vectors[start : start + size].reshape(*shape, -1)
            start += size
    return fields


def zero_fields(tables: Iterable[str], batch: dict[str, Any], width: int) -> dict[str, jax.Array]:
    """Returns what `look_up` gives for these tables' fields, all zero: for what depends on shapes
    only.
    """
    fields = [field for table in tables for field in _fields(table, batch)]
    return {field: jnp.zeros((*jnp.shape(batch[field]), width)) for field in fields}


def look_up(
    tables: Tables, batch: dict[str, Any], partition: Partition | None = None
) -> dict[str, jax.Array]:
    """Returns the batch's id fields as vectors, without gradients (evaluation, rollouts)."""
    if partition is not None:
        rows, values = touched_rows(tables, batch, partition)
        return fields_of(values, rows, batch, partition)
    ids = flat_ids(batch, tables)
    return _cut({name: table_lib.gather(tables[name], ids[name]) for name in tables}, batch)
