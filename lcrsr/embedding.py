"""The embedding tables of 3.2.1 and how a batch reads them.

Tables stay outside the network's parameters: a step gathers the rows that its batch names, takes
gradients with respect to those rows only, and updates only them (`core.tables`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from core import tables as table_lib

Tables = dict[str, jax.Array]

# Which fields of a batch hold ids of which table.
TABLE_FIELDS: dict[str, tuple[str, ...]] = {
    "user": ("user",),
    "item": ("rec_items", "clicked_items", "candidates"),
    "word": ("query_words",),
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


def flat_ids(batch: dict[str, Any]) -> dict[str, jax.Array]:
    """Per table, the ids of all its fields in one int32 vector [n], padding included."""
    return {
        table: jnp.concatenate([jnp.ravel(batch[field]) for field in fields])
        for table, fields in TABLE_FIELDS.items()
    }


def gather_flat(tables: Tables, ids: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Rows [n, D] of `flat_ids`; padding gives zero rows."""
    return {name: table_lib.gather(tables[name], ids[name]) for name in TABLE_FIELDS}


def rows_of(flat: dict[str, jax.Array], batch: dict[str, Any]) -> dict[str, jax.Array]:
    """Cuts flat rows [n, D] into the batch's fields: `user` [B, D], `rec_items` [B, L, D], ..."""
    rows = {}
    for table, fields in TABLE_FIELDS.items():
        start = 0
        for field in fields:
            shape = jnp.shape(batch[field])
            size = int(jnp.size(batch[field]))
            rows[field] = flat[table][start : start + size].reshape(*shape, -1)
            start += size
    return rows


def look_up(tables: Tables, batch: dict[str, Any]) -> dict[str, jax.Array]:
    """The batch's id fields as vectors, without gradients in mind (evaluation, rollouts)."""
    return rows_of(gather_flat(tables, flat_ids(batch)), batch)
