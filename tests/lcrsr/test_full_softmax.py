"""The softmax loss over all items has the value and gradients of the one that is written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lcrsr.full_softmax import full_cross_entropy


def written_out(vectors, items, targets, weights):
    logits = (vectors @ items.T).at[:, 0].set(-jnp.inf)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return (each * weights).sum()


@pytest.mark.parametrize("rows", [1, 37, 64, 200])
def test_value_and_gradients_are_those_of_the_written_out_loss(rows):
    rng = np.random.default_rng(rows)
    arguments = (
        jnp.asarray(3 * rng.standard_normal((rows, 5)), jnp.float32),
        jnp.asarray(rng.standard_normal((29, 5)), jnp.float32),
        jnp.asarray(rng.integers(1, 29, rows)),
        jnp.asarray(rng.integers(0, 2, rows) / 7, jnp.float32),
    )
    ours, wanted = (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*arguments)
        for loss in (full_cross_entropy, written_out)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, wanted)
    # Padding is no item: it neither is scored nor learns.
    assert not np.any(ours[1][1][0])


def test_large_scores_stay_finite():
    vectors, items = jnp.full((2, 4), 1e3), jnp.ones((3, 4)).at[1].set(-1.0)
    value, gradient = jax.value_and_grad(full_cross_entropy)(
        vectors, items, jnp.array([1, 2]), jnp.ones(2)
    )
    assert np.isfinite(value) and np.isfinite(gradient).all()
    np.testing.assert_allclose(value, 8000.0, rtol=1e-6)
