"""Models train on windows as they do one by one, and no target sees what comes after it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from windows_log import log_of, one_by_one, sources

from lcrsr import embedding
from lcrsr.baselines import cl4srec, gru4rec, lares, lrurec, rearec, sasrec
from lcrsr.lcr_ser import LCRSERRanker, LossConfig
from lcrsr.model import LCRSER, ModelConfig

WIDTH = 8
# Every history of the log is shorter; and one that most are longer than.
LONG, SHORT = 40, 4


def lcr_ser(length, **changes):
    model = ModelConfig(
        width=WIDTH, ffn_width=WIDTH, heads=2, layers=1, max_steps=2, dropout=0.0,
        rec_length=length, search_length=length, mlp_widths=(12, 6), **changes,
    )  # fmt: skip
    loss = LossConfig(
        recommendation="bce", lambda_tcl=0.3, margin=0.2, distance="cosine", stop_gradient="none",
        active_steps=2,
    )  # fmt: skip
    return LCRSERRanker(LCRSER(model), loss)


def sequential(name, length):
    shared = {"width": WIDTH, "dropout": 0.0, "init_scale": 0.1}
    if name == "gru4rec":
        return gru4rec.ranker(gru4rec.Settings(hidden=6, loss="full_cross_entropy", **shared))
    if name == "lrurec":
        return lrurec.ranker(lrurec.Settings(layers=2, loss="full_cross_entropy", **shared))
    shared |= {"layers": 2, "heads": 2, "rec_length": length}
    if name == "cl4srec":
        return cl4srec.ranker(
            cl4srec.Settings(
                loss="full_cross_entropy", contrastive_weight=0.3, temperature=0.5, crop=0.6,
                hide=0.3, reorder=0.6, **shared,
            )
        )  # fmt: skip
    if name == "lares":
        return lares.ranker(
            lares.Settings(
                loss="full_cross_entropy", ffn_width=12, core_layers=1, mean_steps=2,
                start_scale=0.0, target_weight=0.4, step_weight=0.2, temperature=0.5, **shared,
            )
        )  # fmt: skip
    if name == "sasrec":
        return sasrec.ranker(sasrec.Settings(loss="full_cross_entropy", **shared))
    return rearec.ranker(
        rearec.Settings(
            variant=name.removeprefix("rearec_"), reasoning_steps=2, temperature=0.5,
            temperature_decay=1.2, kl_weight=0.1, progressive_weight=0.3, contrastive_weight=0.0,
            noise=0.0, **shared,
        )
    )  # fmt: skip


RANKERS = {
    "lcr_ser": lcr_ser,
    **{
        name: functools.partial(sequential, name)
        for name in (
            *("sasrec", "gru4rec", "rearec_erl", "rearec_prl"),
            *("cl4srec", "lares", "lrurec"),
        )
    },
}


@functools.cache
def log():
    return log_of(30)


def tables_of(ranker):
    sizes = {"num_users": log().num_users, "num_items": log().num_items}
    every = embedding.init_tables(
        jax.random.key(1), num_words=log().num_words, width=ranker.width, scale=0.5, **sizes
    )
    return {name: every[name] for name in ranker.tables}


def loss_and_gradients(ranker, params, tables, batch):
    def loss(params, tables):
        rows = embedding.look_up(tables, batch)
        value, stats = ranker.loss(params, batch, rows, tables, jax.random.key(2))
        return value, stats

    (value, stats), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(
        params, tables
    )
    return value, stats, gradients


@pytest.mark.parametrize("name", RANKERS)
def test_losses_and_gradients_are_those_of_one_by_one(name):
    ranker = RANKERS[name](LONG)
    source, _, examples = sources(log(), LONG, 8)
    tables = tables_of(ranker)
    batch = source.batch_at(0)
    alone, _, filled = one_by_one(log(), LONG, batch, examples)
    assert len(filled) < len(batch["mask"])
    params = ranker.init(jax.random.key(0), alone, embedding.look_up(tables, alone))
    ours = loss_and_gradients(ranker, params, tables, batch)
    wanted = loss_and_gradients(ranker, params, tables, alone)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5), ours, wanted)


@pytest.mark.parametrize("name", RANKERS)
def test_no_target_sees_what_comes_after_it(name):
    ranker = RANKERS[name](SHORT)
    source, _, _ = sources(log(), SHORT, 8)
    batch = source.batch_at(0)
    tables = tables_of(ranker)
    params = ranker.init(jax.random.key(0), *_example(tables))

    @jax.jit
    def users(batch):
        rows = embedding.look_up(tables, batch)
        if isinstance(ranker, LCRSERRanker):
            return ranker.score(params, ranker.represent(params, batch, rows), rows)
        return jnp.reshape(ranker.represent(params, batch, rows), (len(batch["mask"]), -1))

    states = users(batch)
    targets = len(batch["mask"]) // len(batch["rec_items"])
    moves = 0
    for target in np.flatnonzero(batch["mask"])[:40]:
        row = target // targets
        # All that lies behind its history in its row, of its own window or of another.
        changed = {}
        for side, name in (("rec", "rec_items"), ("search", "clicked_items")):
            first, end = batch[f"{side}_first"][target], batch[f"{side}_end"][target]
            changed[name] = batch[name].copy()
            changed[name][row, end + (first == end) :] = 7
        moved = users(batch | changed)
        np.testing.assert_allclose(moved[target], states[target], atol=1e-5)
        moves += not np.allclose(moved, states, atol=1e-3)
    assert moves > 5


def _example(tables):
    _, alone, _ = sources(log(), SHORT, 8)
    batch = alone.batch_at(0)
    return batch, embedding.look_up(tables, batch)
