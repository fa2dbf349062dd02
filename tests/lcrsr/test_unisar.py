"""UniSAR: transitions against a masked Transformer in numpy, losses by hand, what it learns."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from announced_batches import ITEMS, REC, SEARCHES, SIZES, batch_of, trained

from lcrsr.baselines import two_histories, unisar
from lcrsr.embedding import init_tables, look_up


def settings(**changes):
    return unisar.Settings(
        **{
            "width": 8,
            "hidden": 8,
            "layers": 1,
            "heads": 2,
            "dropout": 0.0,
            "init_scale": 0.5,
            "loss": "bce",
            "experts": 2,
            "expert_width": 8,
            "tower_widths": (8,),
            "alignment_weight": 0.1,
            "alignment_temperature": 0.5,
            "alignment_pairs": 16,
            "transition_weight": 0.1,
            "transition_temperature": 0.1,
            "search_weight": 0.5,
            "rec_length": REC,
            "search_length": SEARCHES,
        }
        | changes
    )


@functools.cache
def made():
    """A ranker, its parameters with random biases and norms, its tables."""
    ranker = unisar.ranker(settings())
    tables = init_tables(jax.random.key(0), width=8, scale=0.5, **SIZES)
    example = batch_of(np.random.default_rng(0), 8)
    params = ranker.init(jax.random.key(1), example, look_up(tables, example))
    rng = np.random.default_rng(0)
    shaken = jax.tree.map(lambda p: p + 0.3 * rng.standard_normal(p.shape).astype("f"), params)
    return ranker, shaken, tables


@functools.partial(jax.jit, static_argnums=0)
def encode(ranker, params, tables, batch):
    return ranker.represent(params, batch, look_up(tables, batch))


@functools.partial(jax.jit, static_argnums=0)
def scored(ranker, params, tables, batch):
    """Scores of the candidates, of the catalogue, and of the search task where there are any."""
    rows = look_up(tables, batch)
    users = ranker.represent(params, batch, rows)
    catalogue = ranker.score_catalogue(params, users, rows, tables["item"])
    search = ranker.search(params, users, batch, rows) if "query" in batch else None
    return ranker.score(params, users, rows), catalogue, search


def norm(x, weights):
    unit = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return unit * weights["scale"] + weights["bias"]


def dense(x, weights):
    return x @ weights["kernel"] + weights["bias"]


def masked_layer(x, allowed, weights, heads=2):
    """A post-LN Transformer layer over one user's merged history; allowed bool [L, L]."""
    length, width = x.shape
    attention = weights["Attention_0"]
    q, k, v = (
        dense(x, attention[name]).reshape(length, heads, -1) for name in ("query", "key", "value")
    )
    mixed = np.zeros((length, heads, width // heads))
    for head in range(heads):
        logits = q[:, head] @ k[:, head].T / np.sqrt(width // heads)
        share = np.exp(logits) * allowed
        mixed[:, head] = share / share.sum(1, keepdims=True) @ v[:, head]
    x = norm(x + dense(mixed.reshape(length, width), attention["out"]), weights["LayerNorm_0"])
    feed = weights["FeedForward_0"]
    inner = dense(np.maximum(dense(x, feed["Dense_0"]), 0), feed["Dense_1"])
    return norm(x + inner, feed["LayerNorm_0"])


def test_transitions_are_those_of_the_masked_transformer_over_the_merged_history():
    batch = batch_of(np.random.default_rng(3), 8)
    # One user by hand: click, search, click, search.
    batch["rec_items"][0] = [3, 7, 0, 0]
    batch["query_words"][0] = [[1, 2], [5, 0], [0, 0]]
    batch["clicked_items"][0] = [[4], [0], [0]]
    batch["rec_order"][0], batch["search_order"][0] = [0, 2, 0, 0], [1, 3, 0]
    ranker, params, tables = made()
    encoded = encode(ranker, params, tables, batch)
    weights = jax.tree.map(np.asarray, params)
    item = lambda i: np.tanh(dense(np.asarray(tables["item"])[i], weights["features"]["item"]))  # noqa: E731
    word = np.asarray(tables["word"])
    query = [
        np.tanh(dense(w, weights["features"]["query"])) for w in (word[[1, 2]].mean(0), word[5])
    ]
    merged = np.stack([item(3), query[0] + item(4), item(7), query[1]])
    merged = merged + weights["merged"]["positions"][:4]
    # Hand-worked: clicks 0 and 2 see the searches 1 and 3 alone, and the other way round.
    allowed = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
    expected = masked_layer(merged, allowed, weights["merged"]["EncoderLayer_0"])
    np.testing.assert_allclose(encoded.transitions.s2r[0, :2], expected[[0, 2]], atol=2e-5)
    np.testing.assert_allclose(encoded.transitions.r2s[0, :2], expected[[1, 3]], atol=2e-5)
    own = np.stack([item(3), item(7)]) + weights["own_rec"]["positions"][:2]
    expected = masked_layer(own, np.ones((2, 2)), weights["own_rec"]["EncoderLayer_0"])
    np.testing.assert_allclose(encoded.transitions.r2r[0, :2], expected, atol=2e-5)


def test_each_transition_sees_its_own_sources():
    batch = batch_of(np.random.default_rng(4), 8)
    batch["rec_items"][0], batch["rec_order"][0] = [3, 7, 0, 0], [0, 2, 0, 0]
    batch["query_words"][0] = [[1, 2], [5, 0], [0, 0]]
    batch["search_order"][0] = [1, 3, 0]
    ranker, params, tables = made()
    before = encode(ranker, params, tables, batch).transitions

    def moved(**changes):
        other = {name: batch[name].copy() for name in batch}
        for name, (place, value) in changes.items():
            other[name][0][place] = value
        after = encode(ranker, params, tables, other).transitions
        pairs = zip(before._asdict().items(), after, strict=True)
        return {
            name: [int(p) for p in np.flatnonzero(np.abs(a[0] - b[0]).max(-1) > 1e-4)]
            for (name, a), b in pairs
        }

    # Padding rows carry values that nothing reads; only real places are looked at.
    real = {"r2r": {0, 1}, "s2r": {0, 1}, "s2s": {0, 1}, "r2s": {0, 1}}

    def real_moves(**changes):
        return {name: set(places) & real[name] for name, places in moved(**changes).items()}

    # A click moves all of r2r, its own place of s2r (the residual), and all of r2s.
    clicks = real_moves(rec_items=(1, 9))
    assert clicks == {"r2r": {0, 1}, "s2r": {1}, "s2s": set(), "r2s": {0, 1}}
    searches = real_moves(query_words=(0, 8))
    assert searches == {"r2r": set(), "s2r": {0, 1}, "s2s": {0, 1}, "r2s": {0}}
    # The merged order moves only what crosses between the kinds.
    order = real_moves(rec_order=(1, 4), search_order=(1, 2))
    assert order["r2r"] == set() and order["s2s"] == set()
    assert order["s2r"] == {0, 1} and order["r2s"] == {0, 1}


def test_empty_histories_and_padding():
    batch = batch_of(np.random.default_rng(5), 8)
    for row, names in ((0, ("rec",)), (1, ("search",)), (2, ("rec", "search"))):
        if "rec" in names:
            batch["rec_items"][row] = batch["rec_order"][row] = 0
        if "search" in names:
            batch["query_words"][row] = batch["clicked_items"][row] = 0
    batch["mask"][7] = 0
    ranker, params, tables = made()

    def loss(tables, batch):
        return ranker.loss(params, batch, look_up(tables, batch), tables, jax.random.key(0))[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(tables, batch)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    scores, catalogue, _ = scored(ranker, params, tables, batch)
    assert np.isfinite(scores).all()
    own = np.take_along_axis(np.asarray(catalogue), batch["candidates"], 1)
    np.testing.assert_allclose(scores, own, atol=1e-4)
    # What a padded place of the merged order holds is not read.
    padded = batch | {"rec_order": np.where(batch["rec_items"] != 0, batch["rec_order"], 5)}
    again = scored(ranker, params, tables, padded)[0]
    np.testing.assert_allclose(scores, again, atol=1e-5)


def test_the_transition_loss_by_hand():
    module = unisar.Alignment(temperature=0.5)
    own = jnp.array([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 3.0]], [[9.0, 9.0], [9.0, 9.0]]])
    other = jnp.array(
        [[[0.0, 1.0], [7.0, 7.0]], [[1.0, 0.0], [1.0, 0.0]], [[9.0, 9.0], [9.0, 9.0]]]
    )
    mask = jnp.array([[True, False], [True, True], [True, True]])
    counts = jnp.array([True, True, False])
    params = module.init(jax.random.key(0), own, other, mask, counts)["params"]
    params = params | {"kernel": jnp.eye(2)}
    loss = module.apply({"params": params}, own, other, mask, counts)
    # Means: own a0 = (1, 0), a1 = (0, 2); other b0 = (0, 1), b1 = (1, 0); the third is left out.
    views = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0], [1.0, 0.0]])
    similarity = np.exp(np.tanh(views @ views.T) / 0.5)
    pairs = [(0, 2), (1, 3), (2, 0), (3, 1)]
    each = [-np.log(similarity[i, j] / (similarity[i].sum() - similarity[i, i])) for i, j in pairs]
    assert float(loss) == pytest.approx(np.mean(each), rel=1e-5)


def test_the_query_item_loss_by_hand():
    module = two_histories.QueryItemAlignment(temperature=0.5)
    e = np.eye(2, dtype=np.float32)
    pairs = two_histories.Pairs(
        queries=jnp.array([e[0], e[1]]),
        items=jnp.array([[1.0, 1.0], [5.0, 5.0]]),
        valid=jnp.array([True, False]),
        negative_queries=jnp.array([e[1], e[0]]),
        negative_items=jnp.array([[-1.0, 0.0], [0.0, 2.0]]),
        query_allowed=jnp.array([[True, False], [True, True]]),
        item_allowed=jnp.array([[True, True], [True, True]]),
    )
    params = module.init(jax.random.key(0), pairs)["params"] | {"kernel": jnp.eye(2)}
    loss = float(module.apply({"params": params}, pairs))
    positive = np.exp(np.tanh(1.0) / 0.5)
    of_query = positive / (positive + np.exp(np.tanh(-1.0) / 0.5) + np.exp(0.0))
    of_item = positive / (positive + np.exp(np.tanh(1.0) / 0.5))
    assert loss == pytest.approx(-0.5 * (np.log(of_query) + np.log(of_item)), rel=1e-5)


def test_pairs_are_the_clicks_of_worded_searches_and_never_their_own_negatives():
    batch = batch_of(np.random.default_rng(6), 8)
    batch["query_words"][:] = 0
    batch["clicked_items"][:] = 0
    batch["query_words"][0, :2] = [[1, 2], [3, 0]]
    batch["clicked_items"][0, :2] = [[4], [5]]
    batch["query_words"][1, 0] = [3, 0]
    batch["clicked_items"][2, 0] = 6  # a click without words is no pair
    batch["candidates"][:3, 1] = [7, 4, 8]
    ranker, params, tables = made()
    inputs = encode(ranker, params, tables, batch).inputs
    pairs = jax.jit(two_histories.clicked_pairs, static_argnums=3)(
        inputs, jnp.zeros((8, 8)), batch, 5
    )
    assert pairs.valid.tolist() == [True, True, False, False, False]
    np.testing.assert_array_equal(pairs.items[:2], inputs.clicked[0, :2, 0])
    np.testing.assert_array_equal(pairs.queries[:2], inputs.queries[0, :2])
    # Negative queries: (3) of user 0, (3) of user 1, none of user 2. Item 4 is user 1's negative.
    assert pairs.query_allowed[:2, :3].tolist() == [[True, True, False], [False, False, False]]
    assert pairs.item_allowed[:2, :3].tolist() == [[True, False, True], [True, True, True]]


@pytest.mark.slow
@pytest.mark.trains
def test_learns_what_a_search_announces_in_both_tasks():
    ranker = unisar.ranker(settings(search_weight=1.0))
    state, stats = trained(ranker, search_rows=24)
    assert np.isfinite(stats["loss"])
    assert "search_bce" in stats
    batch = batch_of(np.random.default_rng(1), 200)
    batch["query"] = np.stack([batch["candidates"][:, 0], 0 * batch["user"]], 1)
    scores, _, searched = scored(ranker, state["params"], state["tables"], batch)
    assert np.mean(np.argmax(scores, 1) == 0) > 0.8
    assert np.mean(np.argmax(searched, 1) == 0) > 0.8
    # The query of now says it, whatever the history says; and other queries say other items.
    batch["query_words"] = np.where(batch["query_words"] != 0, 1 + batch["query_words"] % ITEMS, 0)
    misled = scored(ranker, state["params"], state["tables"], batch)
    assert np.mean(np.argmax(misled[2], 1) == 0) > 0.7 > np.mean(np.argmax(misled[0], 1) == 0)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="hidden divisible by heads"):
        settings(heads=3)
    with pytest.raises(ValueError, match="alignment_temperature above 0"):
        settings(alignment_temperature=0.0)
