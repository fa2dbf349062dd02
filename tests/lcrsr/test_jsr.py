"""JSR: its heads by hand, and what its search loss reaches."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from announced_batches import batch_of

from lcrsr.baselines import jsr
from lcrsr.baselines.two_histories import QUIET
from lcrsr.embedding import look_up


def settings(**changes):
    return jsr.Settings(
        **{"width": 2, "mlp_widths": (2,), "dropout": 0.0, "init_scale": 0.5}
        | {"loss": "bce", "search_weight": 1.0}
        | changes
    )


def heads():
    """A sum with weights 1 and 10 for recommendation, the difference for search."""
    eye, zeros = jnp.eye(2), jnp.zeros(2)
    towers = {f"towers_{i}": {"Dense_0": {"kernel": eye, "bias": zeros}} for i in range(2)}
    kernels = jnp.array([[1.0], [10.0]]), jnp.array([[1.0], [-1.0]])
    logits = {f"logits_{i}": {"kernel": k, "bias": jnp.zeros(1)} for i, k in enumerate(kernels)}
    importance = {"importance": {"kernel": jnp.array([[jnp.log(3.0)], [0.0]])}}
    return {"params": towers | logits | importance}


def test_each_head_gets_the_product_of_each_dimension():
    network = jsr.Network(settings())
    users = jsr.Encoded(jnp.array([[1.0, 2.0]]), jnp.array([[2.0, 1.0]]))
    items = jnp.array([[[3.0, 4.0], [-3.0, 4.0]]])
    # (1, 2) * (3, 4) = (3, 8), and below 0 relu leaves nothing.
    logits = network.apply(heads(), users, items, QUIET, method="recommend")
    np.testing.assert_allclose(logits, [[83.0, 80.0]])
    logits = network.apply(heads(), users, items, QUIET, method="search")
    np.testing.assert_allclose(logits, [[2.0, -4.0]])


def test_a_query_is_the_weighted_mean_of_its_words():
    words = jnp.array([[[1.0, 0.0], [0.0, 4.0], [9.0, 9.0]], [[1.0, 1.0]] * 3])
    mask = jnp.array([[True, True, False], [False] * 3])
    queries = jsr.Network(settings()).apply(heads(), words, mask, method="queries")
    # Weights: exp(log 3 * 1) and exp(0), so 3/4 and 1/4.
    np.testing.assert_allclose(queries, [[0.75, 1.0], [0.0, 0.0]], atol=1e-6)


def gradients(weight):
    """Of the loss by the tables, for a batch whose last four rows search."""
    ranker = jsr.ranker(settings(search_weight=weight))
    batch = batch_of(np.random.default_rng(0), 6, 4)
    if not weight:  # such a ranker is given no searches
        batch = batch_of(np.random.default_rng(0), 6)
    rng = np.random.default_rng(1)
    tables = {
        name: jnp.asarray(rng.standard_normal((20, 2)), jnp.float32) for name in ranker.tables
    }
    params = ranker.init(jax.random.key(0), batch, look_up(tables, batch))

    def loss(tables):
        rows = look_up(tables, batch)
        return ranker.loss(params, batch, rows, tables, jax.random.key(0))[0]

    return jax.jit(jax.grad(loss))(tables), batch


def test_searches_move_items_and_words_only_where_they_have_a_weight():
    none, _ = gradients(0.0)
    assert not np.any(none["word"])
    some, batch = gradients(1.0)
    asked = batch["query"][:, 0]
    assert np.abs(some["word"][asked]).max() > 1e-4
    twice, _ = gradients(2.0)
    np.testing.assert_allclose(twice["word"], 2 * some["word"], rtol=1e-4, atol=1e-7)
    # Items that only searches name.
    alone = np.setdiff1d(batch["candidates"][2:], batch["candidates"][:2])
    assert len(alone) and np.abs(some["item"][alone]).max() > 1e-5


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="search_weight"):
        settings(search_weight=-1.0)
