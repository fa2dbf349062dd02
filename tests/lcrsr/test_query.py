"""The query of a user: nearness to the latest events at the start, and what it does not depend on.

Axes: B users, N candidates, D width, K steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_batches import ITEMS, config, forward, ragged_batch, setup

from core.errors import UserError
from lcrsr import query
from lcrsr.embedding import look_up
from lcrsr.lcr_ser import LCRSERRanker, LossConfig
from lcrsr.model import LCRSER

LOSS = {"lambda_tcl": 0.1, "margin": 0.1, "distance": "cosine", "stop_gradient": "both"}


def ranker(**changes):
    cfg = config(scorer="dot_product", **changes)
    loss = LossConfig(recommendation="sampled_softmax", active_steps=2, **LOSS)
    return LCRSERRanker(LCRSER(cfg), loss)


def test_at_the_start_an_item_is_scored_by_its_nearness_to_the_latest_events():
    cfg = config(scorer="dot_product", init_scale=0.5)
    batch = ragged_batch()
    _, _, tables = setup(cfg, batch)
    r = ranker(init_scale=0.5)
    rows = look_up(tables, batch)
    params = r.init(jax.random.key(0), batch, rows)
    scores = r.score(params, r.represent(params, batch, rows), rows)
    clicks, searches = np.asarray(rows["rec_items"]), 0.0
    for name in ("query_words", "clicked_items"):
        valid = (batch[name] != 0)[..., None]
        count = np.maximum(valid.sum(-2), 1)
        searches = searches + (np.asarray(rows[name]) * valid).sum(-2) / count
    for user, (n_clicks, n_searches) in enumerate([(5, 4), (2, 1), (0, 3), (3, 0), (0, 0), (1, 2)]):
        wanted = np.zeros(cfg.width)
        wanted[0] = query.POPULARITY_WEIGHT
        for events, count in ((clicks[user], n_clicks), (searches[user], n_searches)):
            for ago in range(count):
                wanted += 0.3 / 0.5 * 0.6**ago * events[count - 1 - ago]
        np.testing.assert_allclose(scores[user], rows["candidates"][user] @ wanted, rtol=2e-5)


def test_every_k_from_one_pass_and_a_number_a_user_equal_a_pass_each():
    cfg = config(scorer="dot_product")
    batch = ragged_batch()
    model, params, tables = setup(cfg, batch)
    outputs = [forward(model, params, tables, batch, k) for k in range(4)]
    rows = look_up(tables, batch)
    histories, states = outputs[0].histories, outputs[0].cross
    arguments = {"params": params}, histories, states
    every = model.apply(*arguments, None, rows["candidates"], method=LCRSER.score_every_k)
    np.testing.assert_allclose(every, [o.logits for o in outputs], rtol=1e-5, atol=1e-5)
    own = jnp.array([[0], [1], [2], [3], [1], [0]])
    each = model.apply(*arguments, own, None, rows["candidates"], method=LCRSER.score)
    wanted = [outputs[int(k)].logits[user] for user, k in enumerate(own[:, 0])]
    np.testing.assert_allclose(each, wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(every[3] - every[0]).max() > 1e-2


def test_a_catalogue_is_scored_like_lists():
    batch = ragged_batch()
    r = ranker()
    _, params, tables = setup(r.model.config, batch)
    rows = look_up(tables, batch)
    users = r.represent(params, batch, rows)
    every = r.score_catalogue(params, users, rows, tables["item"])
    assert every.shape == (6, ITEMS + 1)
    lists = np.take_along_axis(np.asarray(every), batch["candidates"], 1)
    np.testing.assert_allclose(r.score(params, users, rows), lists, rtol=1e-5, atol=1e-5)


def test_it_reads_no_user_rows():
    assert ranker().tables == ("item", "word")


def test_sampled_softmax_needs_the_dot_product():
    loss = LossConfig(recommendation="sampled_softmax", active_steps=2, **LOSS)
    with pytest.raises(
        UserError, match=r"expected config.model.scorer='dot_product' .* 'mlp'; set"
    ):
        LCRSERRanker(LCRSER(config()), loss)
