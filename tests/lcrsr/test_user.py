"""USER: co-attention by hand, the history layer against a plain Transformer, the session."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from announced_batches import SIZES, batch_of

from lcrsr.baselines import user
from lcrsr.baselines.two_histories import QUIET, EncoderLayer
from lcrsr.embedding import init_tables, look_up

SETTINGS = user.Settings(
    width=8,
    heads=2,
    session=2,
    dropout=0.0,
    init_scale=0.5,
    loss="cross_entropy",
    search_weight=1.0,
)


@functools.cache
def made():
    ranker = user.ranker(SETTINGS)
    tables = init_tables(jax.random.key(0), width=8, scale=0.5, **SIZES)
    batch = batch_of(np.random.default_rng(0), 8)
    return ranker, ranker.init(jax.random.key(1), batch, look_up(tables, batch)), tables


@jax.jit
def encoded(params, tables, batch):
    return made()[0].represent(params, batch, look_up(tables, batch))


def test_co_attention_by_hand():
    words = jnp.array([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    clicked = jnp.array([[[2.0, 0.0], [7.0, 7.0]]])
    masks = jnp.array([[True, True, False]]), jnp.array([[True, False]])
    module, eye = user.CoAttention(), jnp.eye(2)
    dense = {"kernel": jnp.concatenate([eye, 10 * eye]), "bias": jnp.zeros(2)}
    params = {"params": {"kernel": eye, "Dense_0": dense}}
    # The first word matches the click by tanh 2, the second not at all.
    weight = np.exp(np.tanh(2.0)) / (np.exp(np.tanh(2.0)) + 1)
    expected = np.array([weight, 1 - weight]) + 10 * np.array([2.0, 0.0])
    np.testing.assert_allclose(module.apply(params, words, clicked, *masks)[0], expected, rtol=1e-6)
    # Without clicks all words weigh alike; without words there are clicks alone.
    nothing = jnp.zeros((1, 2), bool), jnp.zeros((1, 3), bool)
    of_words = module.apply(params, words, clicked, masks[0], nothing[0])
    np.testing.assert_allclose(of_words[0], [0.5, 0.5], atol=1e-6)
    of_clicks = module.apply(params, words, clicked, nothing[1], masks[1])
    np.testing.assert_allclose(of_clicks[0], [20.0, 0.0], atol=1e-6)


def test_an_item_sees_the_events_and_itself_as_in_a_plain_transformer():
    keys = jax.random.split(jax.random.key(0), 3)
    events, items = jax.random.normal(keys[0], (2, 3, 8)), jax.random.normal(keys[1], (1, 5, 8))
    mask = jnp.array([[True, False, True], [False] * 3])
    layer, plain = user.HistoryLayer(2), EncoderLayer(2)
    params = layer.init(keys[2], items, events, mask, QUIET)["params"]
    after = layer.apply({"params": params}, items, events, mask, QUIET)
    names = ("query", "key", "value", "out")
    same = {"Attention_0": {name: params[name] for name in names}}
    same |= {name: params[name] for name in ("LayerNorm_0", "FeedForward_0")}
    for of_user in range(2):
        for item in range(5):
            x = jnp.concatenate([events[of_user], items[0, item][None]])[None]
            seen = jnp.append(mask[of_user], True)[None]
            expected = plain.apply({"params": same}, x, x, seen, QUIET)[0, -1]
            np.testing.assert_allclose(after[of_user, item], expected, atol=1e-5)


def test_the_session_is_the_last_events():
    _, params, tables = made()
    batch = batch_of(np.random.default_rng(2), 8)
    batch["rec_items"][:] = [3, 7, 5, 0]
    batch["query_words"][:, :] = [[[1, 2], [0, 0], [0, 0]]]
    batch["clicked_items"][:] = 0
    # In time: click 3, the search, clicks 7 and 5.
    batch["rec_order"][:], batch["search_order"][:] = [0, 2, 3, 0], [1, 0, 0]
    before = encoded(params, tables, batch)
    assert before.mask.sum(1).tolist() == 8 * [4]

    def moved(name, place, value):
        other = batch | {name: batch[name].copy()}
        other[name][:, place] = value
        after = encoded(params, tables, other).intents
        return (np.abs(after - before.intents).max((0, 2)) > 1e-5).tolist()

    assert moved("rec_items", 0, 9) == [False, True]
    assert moved("query_words", 0, 6) == [False, True]
    assert moved("rec_items", 1, 9) == [True, True]


def test_scores_are_a_sum_of_cosines():
    ranker, params, tables = made()
    batch = batch_of(np.random.default_rng(3), 8)
    params = params | {"weights": jnp.array([1.0, 0.0, 0.0, 0.0]), "bias": jnp.float32(0.5)}
    intent = np.asarray(encoded(params, tables, batch).intents)[:, 0]
    items = np.asarray(tables["item"])[batch["candidates"]]
    cosine = np.einsum("bd,bnd->bn", intent, items)
    cosine /= np.linalg.norm(intent, axis=-1)[:, None] * np.linalg.norm(items, axis=-1)
    rows = look_up(tables, batch)
    scores = jax.jit(lambda users: ranker.score(params, users, rows))(
        encoded(params, tables, batch)
    )
    np.testing.assert_allclose(scores, cosine + 0.5, atol=1e-5)
