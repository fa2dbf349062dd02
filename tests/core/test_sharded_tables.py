"""Sharded lookups and updates against one device: duplicates, crowded owners, both mesh axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from core import sharded_tables, tables
from core.errors import UserError
from core.partitioning import BATCH_AXES, MODEL, Partition, make_mesh

ROWS, BATCH, EACH = 512, 16, 20


def id_batches(kind, width):
    """Three batches of ids [B, m] and weights [B, m, D].

    Every kind has padding and ids named by several devices.
    """
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
            jnp.asarray(rng.standard_normal((BATCH, EACH, width)), jnp.float32),
        )


def one_device(kind, optimizer, table):
    state, seen = optimizer.init(table), []
    width = table.shape[1]
    for step, (ids, weights) in enumerate(id_batches(kind, width)):
        touched = tables.touched(ids.reshape(-1), ROWS)
        values = tables.gather_touched(table, touched)
        vectors = values[touched.places].reshape(weights.shape)
        gradient = jax.grad(
            lambda v, t=touched, w=weights: (
                (v[t.places] * w.reshape(-1, width)).sum() + 0.1 * jnp.square(v).sum()
            )
        )(values)
        seen.append((vectors, jnp.square(values).sum()))
        table, state = optimizer.update(touched, gradient, table, state, 0.1, jnp.int32(step))
    return table, state, seen


def on_mesh(kind, optimizer, table, mesh, limits):
    by_row = NamedSharding(mesh, PartitionSpec(MODEL))
    by_example = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    width, pack = table.shape[1], tables.rows_together(table.shape[1])
    table = jax.device_put(table.reshape(ROWS // pack, pack * width), by_row)
    state, seen = jax.device_put(optimizer.init(table), by_row), []

    @jax.jit
    def step(table, state, ids, weights, number):
        rows, values = sharded_tables.touched(ids, table, mesh, pack, limits)

        def loss(values):
            once = jnp.square(values * jnp.sqrt(rows.share)[:, None]).sum()
            vectors = sharded_tables.spread(values, rows, mesh, limits)
            return (vectors * weights).sum() + 0.1 * once, (vectors, once)

        gradient, found = jax.grad(loss, has_aux=True)(values)
        new = sharded_tables.update(
            optimizer, rows, gradient, table, state, jnp.float32(0.1), number, mesh, limits
        )
        return *new, found

    for number, batch in enumerate(id_batches(kind, width)):
        ids, weights = jax.device_put(batch, by_example)
        table, state, found = step(table, state, ids, weights, jnp.int32(number))
        seen.append(found)
    return *(jax.tree.map(lambda a: a.reshape(ROWS, width), (table, state))), seen


@pytest.mark.parametrize(
    ("kind", "extents", "width"),
    # Three rows do not fill 128 lanes and four of 32 do, so that those are packed.
    [("crowded", (1, 8), 32), ("one", (8, 1), 3), ("spread", (2, 4), 32)],
)
def test_equal_to_one_device(kind, extents, width):
    # Several rounds, and several scatters in each.
    limits = sharded_tables.Limits(least_capacity=4, most_scattered=16)
    table = jax.random.normal(jax.random.key(0), (ROWS, width)).at[0].set(0.0)
    optimizer = tables.touched_rows("adam")
    expected = one_device(kind, optimizer, table)
    cut = on_mesh(kind, optimizer, table, make_mesh(*extents), limits)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6), cut, expected)
    assert np.all(np.asarray(cut[0])[0] == 0)
    assert not np.allclose(cut[0], table), "the rows have moved"


def test_rows_that_lie_in_one_packed_row():
    """Worked by hand: 4, 5, 6 and 7 share a packed row; 6 and 7 stay as they are, bit for bit."""
    mesh = make_mesh(1, 2)
    by_row = NamedSharding(mesh, PartitionSpec(MODEL))
    packed = jnp.arange(16.0).repeat(32).reshape(4, 128)
    state = (jnp.full_like(packed, 0.5), jnp.full_like(packed, 0.5))
    # The gradient of row 5 is 1 + 2 + 4, named twice by one device and once by the other.
    ids = jnp.array([[5, 4, 5], [5, 0, 9]], jnp.int32)
    weights = jnp.array([[1.0, -2.0, 2.0], [4.0, 8.0, 3.0]])[..., None]

    @jax.jit
    def step(table, state):
        rows, values = sharded_tables.touched(ids, table, mesh, 4)
        vectors = sharded_tables.spread(values, rows, mesh)
        gradient = jax.grad(lambda v: (sharded_tables.spread(v, rows, mesh) * weights).sum())
        optimizer = tables.touched_rows("adam")
        rate, first = jnp.float32(0.1), jnp.int32(0)
        new = sharded_tables.update(
            optimizer, rows, gradient(values), table, state, rate, first, mesh
        )
        return vectors, *new

    vectors, table, (mean, square) = step(*jax.device_put((packed, state), by_row))
    np.testing.assert_array_equal(vectors[..., 0], [[5, 4, 5], [5, 0, 9]])
    expected = {
        "mean": {4: 0.45 - 0.2, 5: 0.45 + 0.7, 9: 0.45 + 0.3},
        "square": {4: 0.4995 + 0.004, 5: 0.4995 + 0.049, 9: 0.4995 + 0.009},
        # Bias-corrected by 1 / .1 and 1 / .001.
        "table": {
            4: 4 - 0.1 * 2.5 / 503.5**0.5,
            5: 5 - 0.1 * 11.5 / 548.5**0.5,
            9: 9 - 0.1 * 7.5 / 508.5**0.5,
        },
    }
    start = {"mean": np.full(16, 0.5), "square": np.full(16, 0.5), "table": np.arange(16.0)}
    for name, found in {"mean": mean, "square": square, "table": table}.items():
        rows = np.asarray(found).reshape(16, 32)
        assert np.all(rows == rows[:, :1])
        untouched = np.setdiff1d(np.arange(16), [4, 5, 9])
        np.testing.assert_array_equal(rows[untouched, 0], start[name][untouched])
        for row, value in expected[name].items():
            assert rows[row, 0] == pytest.approx(value, abs=1e-6), (name, row)


def test_no_temporary_of_the_size_of_a_shard():
    mesh, rows, width, pack = make_mesh(1, 8), 256 * 4096, 64, 2
    optimizer = tables.touched_rows("adam")

    def step(table, state, ids):
        touched, values = sharded_tables.touched(ids, table, mesh, pack)
        return sharded_tables.update(
            optimizer, touched, values, table, state, jnp.float32(0.1), jnp.int32(0), mesh
        )

    by_row = NamedSharding(mesh, PartitionSpec(MODEL))
    shape = (rows // pack, pack * width)
    table = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=by_row)
    ids = jax.ShapeDtypeStruct(
        (64, 8), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    )
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(by_row, (by_row, by_row)))
    memory = jitted.lower(table, (table, table), ids).compile().memory_analysis()
    shard = rows * width * 4 // 8
    assert memory.argument_size_in_bytes >= 3 * shard
    assert memory.temp_size_in_bytes < shard / 10


def test_meshes_that_do_not_fit_are_refused():
    assert dict(make_mesh(2, -1).shape) == {"data": 2, "model": 4}
    assert dict(make_mesh(-1, 8).shape) == {"data": 1, "model": 8}
    with pytest.raises(UserError, match=r"at most 8 devices, found .* 4 x 4"):
        make_mesh(4, 4)
    with pytest.raises(UserError, match="one of them -1"):
        make_mesh(-1, -1)
    with pytest.raises(UserError, match="divide 256, found 3"):
        make_mesh(1, 3)
    partition = Partition(make_mesh(2, 4), ())
    with pytest.raises(UserError, match="8 devices, found 12"):
        partition.put_batch({"user": np.zeros(12)})
