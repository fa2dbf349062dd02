"""The softmax from shared negatives estimates the one over all items, and leaves out what it must.

Axes: B targets, N candidates of each, V items, D width.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lcrsr.losses import sampled_softmax

B, N, V, D = 64, 33, 40, 4


def drawn(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, V + 1, (B, N))
    return ids.astype(np.int32)


def problem():
    rng = np.random.default_rng(0)
    items = jnp.asarray(rng.standard_normal((V + 1, D)), jnp.float32)
    users = jnp.asarray(rng.standard_normal((B, D)), jnp.float32)
    return users, items, drawn(1)[:, 0]


def test_its_gradient_is_that_of_the_softmax_over_all_items_in_expectation():
    users, items, targets = problem()

    def sampled(users, ids):
        ids = jnp.concatenate([targets[:, None], ids[:, 1:]], 1)
        return sampled_softmax(users, ids, items[ids], jnp.ones(B), V)

    def whole(users):
        logits = users @ items[1:].T
        own = jnp.einsum("bd,bd->b", users, items[targets])
        return (jax.nn.logsumexp(logits, -1) - own).mean()

    # 2,048 negatives of 40 items each time, and 50 times: what is left is below a hundredth.
    estimates = jax.lax.map(
        lambda ids: jax.value_and_grad(sampled)(users, ids),
        jnp.stack([drawn(s) for s in range(50)]),
    )
    value, gradient = jax.value_and_grad(whole)(users)
    np.testing.assert_allclose(estimates[0].mean(), value, rtol=5e-3)
    np.testing.assert_allclose(estimates[1].mean(0), gradient, atol=0.03 * np.abs(gradient).max())


def test_padding_and_draws_of_the_target_count_nothing():
    users, items, targets = problem()
    ids = np.concatenate([targets[:, None], drawn(2)[:, 1:]], 1)
    mask = np.ones(B, np.float32)
    mask[B // 2 :] = 0.0

    def loss(ids, items):
        return sampled_softmax(users, ids, items[ids], mask, V)

    other = ids.copy()
    other[B // 2 :] = 1 + other[B // 2 :] % V
    np.testing.assert_allclose(loss(ids, items), loss(other, items), rtol=1e-6)
    # With the target for its only negative there is nothing to lose.
    same = np.broadcast_to(np.int32(7), (B, N))
    assert loss(same, items) == 0.0


def test_many_candidates_are_cut_to_what_a_batch_shares():
    rng = np.random.default_rng(3)
    users = jnp.asarray(rng.standard_normal((8192, 2)), jnp.float32)
    items = jnp.asarray(rng.standard_normal((V + 1, 2)), jnp.float32)
    ids = rng.integers(1, V + 1, (8192, 5)).astype(np.int32)
    shape = jax.eval_shape(lambda u, r: u @ r.T, users, users)
    text = jax.jit(lambda: sampled_softmax(users, ids, items[ids], jnp.ones(8192), V)).lower()
    assert f"{shape.shape[0]}x{shape.shape[1]}x" in text.as_text()
