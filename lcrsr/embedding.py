"""The embedding tables of 3.2.1 and how a batch reads them.

Tables stay outside the network's parameters: a step gathers the rows that its batch names, takes
gradients with respect to those rows only, and updates only them (`core.tables`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from core import tables as table_lib

Tables = dict[str, jax.Array]

# Which fields of a batch hold ids of which table; `query` is in batches with search examples.
TABLE_FIELDS: dict[str, tuple[str, ...]] = {
    "user": ("user",),
    "item": ("rec_items", "clicked_items", "candidates"),
    "word": ("query_words", "query"),
}


def init_tables(
    key: jax.Array, *, num_users: int, num_items: int, num_words: int, width: int, scale: float
) -> Tables:
    """Normal rows of standard deviation `scale`; row 0 (padding) is zero.

    Returns:
      float32 tables `user` [U+2, D] (the last row is shared by users not seen in training),
      `item` [V+1, D], `word` [W+1, D].
    """
    sizes = {"user": num_users + 2, "item": num_items + 1, "word": num_words + 1}
    keys = dict(zip(sizes, jax.random.split(key, len(sizes)), strict=True))
    return {
        name: (scale * jax.random.normal(keys[name], (rows, width), jnp.float32)).at[0].set(0.0)
        for name, rows in sizes.items()
    }


def flat_ids(batch: dict[str, Any], tables: Iterable[str]) -> dict[str, jax.Array]:
    """Per table, the ids of all its fields in one int32 vector [n], padding included."""
    return {
        table: jnp.concatenate([jnp.ravel(batch[field]) for field in _fields(table, batch)])
        for table in tables
    }


def _fields(table: str, batch: dict[str, Any]) -> list[str]:
    return [field for field in TABLE_FIELDS[table] if field in batch]


def touched_rows(
    tables: Tables, batch: dict[str, Any]
) -> tuple[dict[str, table_lib.TouchedRows], dict[str, jax.Array]]:
    """Per table, the distinct rows that the batch names, and their values [u, D]."""
    ids = flat_ids(batch, tables)
    rows = {name: table_lib.touched(ids[name], table.shape[0]) for name, table in tables.items()}
    return rows, {name: table_lib.gather_touched(tables[name], rows[name]) for name in tables}


def fields_of(
    values: dict[str, jax.Array], rows: dict[str, table_lib.TouchedRows], batch: dict[str, Any]
) -> dict[str, jax.Array]:
    """The fields `user` [B, D], `rec_items` [B, L, D] and so on from the touched rows' values."""
    return _cut({name: values[name][rows[name].places] for name in values}, batch)


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


def look_up(tables: Tables, batch: dict[str, Any]) -> dict[str, jax.Array]:
    """The batch's id fields as vectors, without gradients in mind (evaluation, rollouts)."""
    ids = flat_ids(batch, tables)
    return _cut({name: table_lib.gather(tables[name], ids[name]) for name in tables}, batch)
