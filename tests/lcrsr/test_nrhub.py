"""NRHUB: attention by hand, views without events, and that it knows no order."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from announced_batches import SIZES, batch_of

from lcrsr.baselines import nrhub, two_histories
from lcrsr.baselines.two_histories import QUIET
from lcrsr.embedding import init_tables, look_up

SETTINGS = nrhub.Settings(
    width=8, attention_width=4, kernel=3, dropout=0.0, init_scale=0.5, loss="bce"
)


@functools.cache
def made():
    ranker = nrhub.ranker(SETTINGS)
    tables = init_tables(jax.random.key(0), width=8, scale=0.5, **SIZES)
    batch = batch_of(np.random.default_rng(0), 8)
    return ranker, ranker.init(jax.random.key(1), batch, look_up(tables, batch)), tables


@jax.jit
def views_and_users(params, tables, batch):
    network, rows = made()[0].network, look_up(tables, batch)
    views, events = network.apply({"params": params}, batch, rows, QUIET, method="views")
    users = network.apply({"params": params}, batch, rows, QUIET, method="encode")
    return views, events, users


def test_additive_attention_by_hand():
    module = two_histories.AdditiveAttention(1)
    kernel = {"inner": {"kernel": jnp.array([[1.0], [0.0]]), "bias": jnp.zeros(1)}}
    params = {"params": kernel | {"query": {"kernel": jnp.array([[2.0]])}}}
    rows = jnp.array([[[1.0, 5.0], [0.0, 1.0], [7.0, 7.0]], [[1.0, 1.0]] * 3])
    mask = jnp.array([[True, True, False], [False] * 3])
    weight = np.exp(2 * np.tanh(1.0)) / (np.exp(2 * np.tanh(1.0)) + 1)
    expected = weight * np.array([1.0, 5.0]) + (1 - weight) * np.array([0.0, 1.0])
    pooled = module.apply(params, rows, mask)
    np.testing.assert_allclose(pooled[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(pooled[1], [0.0, 0.0])


def test_the_order_of_events_changes_nothing():
    _, params, tables = made()
    batch = batch_of(np.random.default_rng(3), 8)
    users = views_and_users(params, tables, batch)[2]
    moved = batch | {
        name: batch[name][:, ::-1].copy() for name in ("rec_items", "query_words", "clicked_items")
    }
    np.testing.assert_allclose(views_and_users(params, tables, moved)[2], users, atol=1e-5)
    # The order of words does: a convolution sees neighbours.
    batch["query_words"][:, 0] = [3, 4]
    users = views_and_users(params, tables, batch)[2]
    turned = batch | {"query_words": batch["query_words"][:, :, ::-1].copy()}
    assert np.abs(views_and_users(params, tables, turned)[2] - users).max() > 1e-4


def test_a_view_alone_is_the_user_and_no_view_a_learned_vector():
    _, params, tables = made()
    batch = batch_of(np.random.default_rng(4), 8)
    batch["rec_items"][:] = 3
    for row in range(3):
        for view, name in enumerate(("query_words", "clicked_items", "rec_items")):
            if view != row:
                batch[name][row] = 0
    batch["query_words"][0] = 5
    batch["clicked_items"][1] = 4
    for name in ("query_words", "clicked_items", "rec_items"):
        batch[name][3] = 0
    views, events, users = views_and_users(params, tables, batch)
    np.testing.assert_array_equal(events[:4], [*np.eye(3, dtype=bool), [False] * 3])
    for row in range(3):
        np.testing.assert_allclose(users[row], views[row, row], atol=1e-6)
    np.testing.assert_allclose(users[3], params["nothing"])
    # All clicked items are the same: so is their view.
    np.testing.assert_allclose(users[2], tables["item"][3], atol=1e-6)
