"""Every sequential baseline learns that one item follows another, and reads nothing it must not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcrsr.baselines import (
    bert4rec,
    cl4srec,
    fmlp_rec,
    gru4rec,
    lares,
    lrurec,
    rearec,
    sasrec,
    sequence,
)
from lcrsr.embedding import look_up
from lcrsr.ranker_task import RankerTask, TrainConfig

ITEMS, LENGTH = 12, 5
SIZES = {"num_users": 3, "num_items": ITEMS, "num_words": 2}


def transformer(**changes):
    return {
        "width": 16,
        "layers": 1,
        "heads": 2,
        "dropout": 0.1,
        "init_scale": 0.1,
        "rec_length": LENGTH,
    } | changes


REASONING = {
    "reasoning_steps": 2,
    "temperature": 0.5,
    "kl_weight": 0.01,
    "temperature_decay": 2.0,
    "progressive_weight": 1.0,
    "contrastive_weight": 0.1,
    "noise": 0.01,
}
CONTRAST = {
    "contrastive_weight": 0.1,
    "temperature": 1.0,
    "crop": 0.6,
    "hide": 0.3,
    "reorder": 0.6,
}
REFINING = {
    "ffn_width": 16,
    "core_layers": 1,
    "mean_steps": 2,
    "start_scale": 1.0,
    "target_weight": 0.1,
    "step_weight": 0.1,
    "temperature": 1.0,
}
PLAIN = {"width": 16, "layers": 1, "dropout": 0.1, "init_scale": 0.1}
RANKERS = {
    "sasrec": sasrec.ranker(sasrec.Settings(**transformer(loss="bce"))),
    "sasrec_ce": sasrec.ranker(sasrec.Settings(**transformer(loss="full_cross_entropy"))),
    "gru4rec": gru4rec.ranker(
        gru4rec.Settings(width=16, hidden=16, dropout=0.1, init_scale=0.1, loss="cross_entropy")
    ),
    "bert4rec": bert4rec.ranker(
        bert4rec.Settings(**transformer(mask_share=0.3, loss="full_cross_entropy"))
    ),
    "cl4srec": cl4srec.ranker(
        cl4srec.Settings(**transformer(**CONTRAST, loss="full_cross_entropy"))
    ),
    "fmlp_rec": fmlp_rec.ranker(fmlp_rec.Settings(**PLAIN, rec_length=LENGTH, loss="bce")),
    "lrurec": lrurec.ranker(lrurec.Settings(**PLAIN, loss="full_cross_entropy")),
    "lares": lares.ranker(lares.Settings(**transformer(**REFINING, loss="full_cross_entropy"))),
    "rearec_erl": rearec.ranker(rearec.Settings(**transformer(**REASONING, variant="erl"))),
    "rearec_prl": rearec.ranker(rearec.Settings(**transformer(**REASONING, variant="prl"))),
}
DENSE = ("sasrec_ce", "bert4rec", "cl4srec", "lrurec", "lares", "rearec_erl", "rearec_prl")


def batch_of(rng, size=64):
    """Histories of 1 to 5 items, each item followed by the next number, the target too."""
    lengths = rng.integers(1, LENGTH + 1, size)
    first = rng.integers(0, ITEMS, size)
    place = np.arange(LENGTH)
    items = np.where(place < lengths[:, None], (first[:, None] + place) % ITEMS + 1, 0)
    target = (first + lengths) % ITEMS + 1
    steps = rng.permuted(np.tile(np.arange(1, ITEMS), (size, 1)), axis=1)
    others = 1 + (target[:, None] - 1 + steps) % ITEMS
    candidates = np.concatenate([target[:, None], others[:, :4]], 1)
    return {
        "user": np.ones(size, np.int32),
        "rec_items": items.astype(np.int32),
        "query_words": np.zeros((size, 2, 1), np.int32),
        "clicked_items": np.zeros((size, 2, 1), np.int32),
        "candidates": candidates.astype(np.int32),
        "labels": np.eye(1, 5, dtype=np.float32).repeat(size, 0),
        "mask": np.ones(size, np.float32),
    }


def task_of(ranker, dense):
    rng = np.random.default_rng(0)
    return RankerTask(
        name="train",
        ranker=ranker,
        config=TrainConfig(
            lambda_l2=0.0, user_dropout=0.0, table_update="dense" if dense else "touched_rows"
        ),
        table_sizes=SIZES,
        example_batch=batch_of(rng),
        batches=lambda step: iter(lambda: batch_of(rng), None),
        steps_per_epoch=10,
        batch_size=64,
        evaluate=lambda params, tables: {},
        selection="ndcg@5/neg99",
        seed=0,
    )


@functools.partial(jax.jit, static_argnums=0)
def ranked(ranker, state, batch):
    rows = look_up(state["tables"], batch)
    users = ranker.represent(state["params"], batch, rows)
    return ranker.score(state["params"], users, rows), ranker.score_catalogue(
        state["params"], users, rows, state["tables"]["item"]
    )


@pytest.mark.parametrize("name", RANKERS)
def test_learns_what_follows(name):
    ranker = RANKERS[name]
    task = task_of(ranker, dense=name in DENSE)
    state, step, batches = task.init(), jax.jit(task.train_step), task.batches(0)
    for _ in range(250):
        state, stats = step(state, next(batches), jnp.float32(1e-2))
    assert np.isfinite(stats["loss"])
    batch = batch_of(np.random.default_rng(1), 200)
    scores, catalogue = ranked(ranker, state, batch)
    best = np.argmax(np.asarray(catalogue)[:, 1:], 1) + 1
    assert np.mean(best == batch["candidates"][:, 0]) > 0.9
    # A user's own candidates and the catalogue are scored alike.
    own = np.take_along_axis(np.asarray(catalogue), batch["candidates"], 1)
    np.testing.assert_allclose(scores, own, rtol=1e-4, atol=1e-4)
    assert np.all(np.asarray(state["tables"]["item"])[0] == 0)


@pytest.mark.parametrize("name", RANKERS)
def test_scores_ignore_padding_labels_and_the_other_candidates(name):
    ranker = RANKERS[name]
    state = task_of(ranker, dense=False).init()
    batch = batch_of(np.random.default_rng(2), 8)
    batch["rec_items"][0] = 0  # an empty history is legal
    scores = ranked(ranker, state, batch)[0]
    assert np.isfinite(scores).all()
    order = np.array([0, 2, 1, 4, 3])
    swapped = batch | {"candidates": batch["candidates"][:, order]}
    np.testing.assert_allclose(ranked(ranker, state, swapped)[0], scores[:, order], atol=1e-5)
    changed = batch | {"candidates": batch["candidates"].copy()}
    changed["candidates"][:, 0] = 1 + changed["candidates"][:, 0] % ITEMS
    np.testing.assert_allclose(ranked(ranker, state, changed)[0][:, 1:], scores[:, 1:], atol=1e-5)
    np.testing.assert_allclose(
        ranked(ranker, state, batch | {"labels": batch["labels"][:, ::-1]})[0], scores, atol=1e-6
    )


@pytest.mark.parametrize("name", RANKERS)
def test_the_latest_item_counts_also_behind_a_hole(name):
    ranker = RANKERS[name]
    state = task_of(ranker, dense=False).init()
    batch = batch_of(np.random.default_rng(3), 2)
    # By counting, the last rows are 1 and 0: a hole both times, which sees nothing that follows.
    batch["rec_items"] = np.array([[3, 0, 5, 0, 0], [0, 5, 0, 0, 0]], np.int32)
    other = batch | {"rec_items": np.where(batch["rec_items"] == 5, 6, batch["rec_items"])}
    difference = np.abs(ranked(ranker, state, batch)[1] - ranked(ranker, state, other)[1])
    assert (difference.max(1) > 1e-4).all()


@pytest.mark.parametrize("name", ["gru4rec", "lrurec", "fmlp_rec"])
def test_these_states_do_not_see_holes(name):
    ranker = RANKERS[name]
    state = task_of(ranker, dense=False).init()
    batch = batch_of(np.random.default_rng(4), 1)
    closed, open_ = (
        batch | {"rec_items": np.array([items], np.int32)}
        for items in ([3, 5, 6, 0, 0], [3, 0, 5, 0, 6])
    )
    np.testing.assert_allclose(
        ranked(ranker, state, closed)[1],
        ranked(ranker, state, open_)[1],
        rtol=0,
        atol=1e-6 if name == "lrurec" else 0,  # its scan adds in another order
    )


def test_a_causal_state_does_not_see_what_follows():
    network = sequence.Transformer(LENGTH, 1, 2, 0.0, causal=True)
    rows = jax.random.normal(jax.random.key(0), (2, LENGTH, 16))
    valid = jnp.ones((2, LENGTH), bool)
    params = network.init(jax.random.key(1), rows, valid, deterministic=True)
    before = network.apply(params, rows, valid, deterministic=True)
    after = network.apply(params, rows.at[:, 3].multiply(-1.0), valid, deterministic=True)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.abs(before[:, 3] - after[:, 3]).max() > 1e-3


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="expected loss of bce"):
        sasrec.ranker(sasrec.Settings(**transformer(loss="hinge")))
