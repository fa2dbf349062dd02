"""Touched-row updates: equal to dense ones where promised, no temporaries of table size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import tables


def gradient_of(table, ids, gradients):
    """Gradients [n, D] of a batch's rows added up on the whole table."""
    return jnp.zeros_like(table).at[ids].add(gradients)


def of_rows(touched, table, gradients):
    """The same on the touched rows, as autodiff finds it."""
    values = tables.gather_touched(table, touched)
    return jax.grad(lambda v: (v[touched.places] * gradients).sum())(values)


def run(kind, dense, steps=4, rows=12, width=3):
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.standard_normal((rows, width)), jnp.float32).at[0].set(0)
    optimizer = tables.dense(kind) if dense else tables.touched_rows(kind)
    state = optimizer.init(table)
    for step in range(steps):
        ids = jnp.asarray(rng.integers(0, rows, 20), jnp.int32)
        gradients = jnp.asarray(rng.standard_normal((20, width)), jnp.float32)
        touched = tables.touched(ids, rows)
        update = gradient_of(table, ids, gradients) if dense else of_rows(touched, table, gradients)
        table, state = optimizer.update(touched, update, table, state, 0.1, jnp.int32(step))
    return np.asarray(table)


@pytest.mark.parametrize("kind", ["sgd", "adagrad"])
def test_touched_rows_equal_dense(kind):
    np.testing.assert_allclose(run(kind, dense=False), run(kind, dense=True), atol=1e-6)


def test_lazy_adam_equals_dense_while_every_row_is_touched_and_differs_after():
    def train(dense, id_lists):
        table = jnp.ones((4, 2)).at[0].set(0)
        optimizer = tables.dense("adam") if dense else tables.touched_rows("adam")
        state = optimizer.init(table)
        for step, ids in enumerate(id_lists):
            ids = jnp.asarray(ids, jnp.int32)
            gradients = jnp.ones((len(ids), 2)) * (step + 1)
            touched = tables.touched(ids, 4)
            update = gradient_of(table, ids, gradients)
            if not dense:
                update = of_rows(touched, table, gradients)
            table, state = optimizer.update(touched, update, table, state, 0.1, jnp.int32(step))
        return np.asarray(table)

    always = [[1, 2, 3], [3, 2, 1]]
    np.testing.assert_allclose(train(False, always), train(True, always), atol=1e-6)
    rare = [[1, 2, 3], [1, 2]]
    lazy, dense = train(False, rare), train(True, rare)
    np.testing.assert_allclose(lazy[:3], dense[:3], atol=1e-6)
    # Dense Adam moves row 3 by its momentum; the lazy variant leaves what no batch named.
    assert lazy[3, 0] == pytest.approx(0.9, abs=1e-6)
    assert dense[3, 0] < 0.85


def test_duplicates_add_up_before_the_update():
    ids = jnp.array([2, 0, 2, 1, 2], jnp.int32)
    touched = tables.touched(ids, 4)
    # Padding first, then ids in the order of their last occurrences; 4 lies beyond the table.
    assert touched.ids.tolist() == [0, 1, 2, 4, 4]
    assert touched.places.tolist() == [2, 0, 2, 1, 2]
    table = jnp.zeros((4, 1))
    summed = of_rows(touched, table, jnp.arange(1.0, 6.0)[:, None])
    assert summed[:, 0].tolist() == [2.0, 4.0, 1.0 + 3.0 + 5.0, 0.0, 0.0]
    table, _ = tables.touched_rows("sgd").update(touched, summed, table, (), 1.0, jnp.int32(0))
    assert table[:, 0].tolist() == [0.0, -4.0, -9.0, 0.0]


def test_the_padding_row_stays_zero():
    for kind in ("sgd", "adagrad", "adam"):
        assert np.all(run(kind, dense=False)[0] == 0)


def test_no_temporary_of_the_size_of_the_table():
    rows, width, n = 200_000, 16, 512
    optimizer = tables.touched_rows("adam")

    def step(table, state, ids, gradients):
        touched = tables.touched(ids, rows)
        update = of_rows(touched, table, gradients)
        return optimizer.update(touched, update, table, state, 0.1, jnp.int32(0))

    table = jax.ShapeDtypeStruct((rows, width), jnp.float32)
    arguments = (
        table,
        (table, table),
        jax.ShapeDtypeStruct((n,), jnp.int32),
        jax.ShapeDtypeStruct((n, width), jnp.float32),
    )
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    # One integer a row finds duplicates; nothing else grows with the table.
    assert temporary < 4 * rows + 40 * n * width * 4
    assert temporary < rows * width * 4 / 4


def test_gather_reads_padding_as_zero():
    table = jnp.arange(6.0).reshape(3, 2).at[0].set(0)
    np.testing.assert_array_equal(tables.gather(table, jnp.array([[0, 2]])), [[[0, 0], [4, 5]]])


def test_more_ids_than_rows():
    ids = jnp.array([1, 1, 2, 2, 0, 1, 2], jnp.int32)
    touched = tables.touched(ids, 3)
    assert touched.ids.tolist() == [0, 1, 2, 3]
    table = jnp.array([[0.0], [5.0], [7.0]])
    assert tables.gather_touched(table, touched)[:, 0].tolist() == [0.0, 5.0, 7.0, 0.0]
    np.testing.assert_array_equal(tables.gather_touched(table, touched)[touched.places], table[ids])
