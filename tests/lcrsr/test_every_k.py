"""The scores of every K from one pass equal a score of each K, in every form of Eq. 8."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcrsr import aggregation

B, R, K, D, N, F = 3, 5, 3, 4, 6, 7


@pytest.mark.parametrize("attention", aggregation.ATTENTIONS)
def test_one_pass_equals_a_pass_for_each_k(attention):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    weights = aggregation.ScorerWeights(
        *(normal(D, D) for _ in range(2)),
        *(normal(D, F) for _ in range(4)),
        normal(F),
        ((normal(F, 1), normal(1)),),
    )
    mask = jnp.asarray(rng.random((B, R)) > 0.4).at[:, 0].set(True)
    # Reasoning rows of thrice the histories' size, so that some take nearly all the weight.
    sides = [(normal(B, R, D), 3 * normal(B, K, D)) for _ in range(2)]
    user, candidates = normal(B, D), normal(B, N, D)

    @jax.jit
    def both():
        pairs = [(aggregation.Side((rows,), mask), states) for rows, states in sides]
        every = aggregation.score_every_k(weights, *pairs, user, candidates, attention)
        each = []
        for k in range(K + 1):
            active = jnp.broadcast_to(jnp.arange(K) < k, (B, K))
            cut = [aggregation.Side(pair, jnp.concatenate([mask, active], 1)) for pair in sides]
            each.append(aggregation.score(weights, *cut, user, candidates, attention))
        return every, jnp.stack(each)

    every, each = both()
    np.testing.assert_allclose(every, each, rtol=1e-5, atol=1e-5)
    assert np.abs(each[1:] - each[:-1]).max() > 1, "every row counts"
