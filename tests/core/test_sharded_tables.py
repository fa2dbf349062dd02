"""Sharded lookups and updates against one device: duplicates, crowded owners, both mesh axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from core import sharded_tables, tables
from core.errors import UserError
from core.partitioning import BATCH_AXES, TABLE, Partition, make_mesh

ROWS, WIDTH, BATCH, EACH = 512, 3, 16, 20


def id_batches(kind):
    """Three batches [B, m] of ids; every kind has padding and ids named by several devices."""
    rng = np.random.default_rng(0)
    for _ in range(3):
        ids = {
            "spread": rng.integers(0, ROWS, (BATCH, EACH)),
            # All on the first owner, more distinct ids than fit in one round.
            "crowded": rng.integers(0, ROWS // 8, (BATCH, EACH)),
            "one": np.full((BATCH, EACH), 7),
        }[kind]
        ids[0, :3] = 0
        yield (
            jnp.asarray(ids, jnp.int32),
            jnp.asarray(rng.standard_normal((BATCH, EACH, WIDTH)), jnp.float32),
        )


def one_device(kind, optimizer, table):
    state, seen = optimizer.init(table), []
    for step, (ids, weights) in enumerate(id_batches(kind)):
        touched = tables.touched(ids.reshape(-1), ROWS)
        values = tables.gather_touched(table, touched)
        vectors = values[touched.places].reshape(weights.shape)
        gradient = jax.grad(
            lambda v, t=touched, w=weights: (
                (v[t.places] * w.reshape(-1, WIDTH)).sum() + 0.1 * jnp.square(v).sum()
            )
        )(values)
        seen.append((vectors, jnp.square(values).sum()))
        table, state = optimizer.update(touched, gradient, table, state, 0.1, jnp.int32(step))
    return table, state, seen


def on_mesh(kind, optimizer, table, mesh):
    by_row = NamedSharding(mesh, PartitionSpec(TABLE))
    by_example = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    table = jax.device_put(table, by_row)
    state, seen = jax.device_put(optimizer.init(table), by_row), []

    @jax.jit
    def step(table, state, ids, weights, number):
        rows, values = sharded_tables.touched(ids, table, mesh)

        def loss(values):
            once = jnp.square(values * jnp.sqrt(rows.share)[:, None]).sum()
            vectors = sharded_tables.spread(values, rows, mesh)
            return (vectors * weights).sum() + 0.1 * once, (vectors, once)

        gradient, found = jax.grad(loss, has_aux=True)(values)
        new = sharded_tables.update(
            optimizer, rows, gradient, table, state, jnp.float32(0.1), number, mesh
        )
        return *new, found

    for number, batch in enumerate(id_batches(kind)):
        ids, weights = jax.device_put(batch, by_example)
        table, state, found = step(table, state, ids, weights, jnp.int32(number))
        seen.append(found)
    return table, state, seen


@pytest.mark.parametrize(
    ("kind", "extents"), [("crowded", (1, 8)), ("one", (8, 1)), ("spread", (2, 4))]
)
def test_equal_to_one_device(kind, extents, monkeypatch):
    monkeypatch.setattr(sharded_tables, "_LEAST_CAPACITY", 4)
    table = jax.random.normal(jax.random.key(0), (ROWS, WIDTH)).at[0].set(0.0)
    optimizer = tables.touched_rows("adam")
    expected = one_device(kind, optimizer, table)
    found = on_mesh(kind, optimizer, table, make_mesh(*extents))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6), found, expected
    )
    assert np.all(np.asarray(found[0])[0] == 0)
    assert not np.allclose(found[0], table), "the rows have moved"


def test_no_temporary_of_the_size_of_a_shard():
    mesh, rows, width = make_mesh(1, 8), 256 * 4096, 16
    optimizer = tables.touched_rows("adam")

    def step(table, state, ids):
        touched, values = sharded_tables.touched(ids, table, mesh)
        return sharded_tables.update(
            optimizer, touched, values, table, state, jnp.float32(0.1), jnp.int32(0), mesh
        )

    by_row = NamedSharding(mesh, PartitionSpec(TABLE))
    table = jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=by_row)
    ids = jax.ShapeDtypeStruct(
        (64, 8), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    )
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(by_row, (by_row, by_row)))
    memory = jitted.lower(table, (table, table), ids).compile().memory_analysis()
    shard = rows * width * 4 // 8
    assert memory.argument_size_in_bytes >= 3 * shard
    assert memory.temp_size_in_bytes < shard / 10


def test_meshes_that_do_not_fit_are_refused():
    assert dict(make_mesh(2, -1).shape) == {"data": 2, "table": 4}
    assert dict(make_mesh(-1, 8).shape) == {"data": 1, "table": 8}
    with pytest.raises(UserError, match=r"at most 8 devices, found .* 4 x 4"):
        make_mesh(4, 4)
    with pytest.raises(UserError, match="one of them -1"):
        make_mesh(-1, -1)
    with pytest.raises(UserError, match="divide 256, found 3"):
        make_mesh(1, 3)
    partition = Partition(make_mesh(2, 4), ())
    with pytest.raises(UserError, match="8 devices, found 12"):
        partition.put_batch({"user": np.zeros(12)})
