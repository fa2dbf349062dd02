"""A rate that falls over the stage, and rows that a training from scratch starts with."""

import jax
import numpy as np
import pytest
from announced_batches import SIZES, batch_of

from lcrsr.baselines import sasrec
from lcrsr.ranker_task import RankerTask, TrainConfig

SETTINGS = {"width": 8, "layers": 1, "heads": 1, "dropout": 0.0, "init_scale": 0.1, "rec_length": 4}


def task(**changes):
    ranker = sasrec.ranker(sasrec.Settings(loss="bce", **SETTINGS))
    batch = batch_of(np.random.default_rng(0), 8)
    values = {
        "config": TrainConfig(
            lambda_l2=0.0, user_dropout=0.0, table_update="touched_rows", schedule="cosine"
        ),
        "max_steps": 10,
    }
    return RankerTask(
        name="train",
        ranker=ranker,
        table_sizes=SIZES,
        example_batch=batch,
        batches=lambda step: iter(lambda: batch, None),
        steps_per_epoch=10,
        batch_size=8,
        evaluate=lambda params, tables: {},
        selection="ndcg@5/neg99",
        seed=0,
        **(values | changes),
    )


@pytest.mark.parametrize(("number", "factor"), [(0, 1.0), (5, 0.55), (10, 0.1), (20, 0.1)])
def test_the_rate_falls_to_a_tenth_over_the_stage(number, factor):
    moved = []
    for schedule in ("plateau", "cosine"):
        config = TrainConfig(
            lambda_l2=0.0, user_dropout=0.0, table_update="touched_rows", schedule=schedule
        )
        made = task(config=config)
        state = made.init() | {"step": np.int32(number)}
        after, _ = jax.jit(made.train_step)(state, next(made.batches(0)), np.float32(1e-2))
        moved.append(np.asarray(after["tables"]["item"] - state["tables"]["item"]))
    assert np.abs(moved[0]).max() > 1e-4
    np.testing.assert_allclose(moved[1], factor * moved[0], rtol=1e-3, atol=1e-7)


def test_a_falling_rate_needs_the_stages_length():
    with pytest.raises(ValueError, match="needs max_steps"):
        task(max_steps=None)


def test_rows_are_put_in_at_the_start_and_not_later():
    rows = np.full((SIZES["num_items"] + 1, 8), np.nan, np.float32)
    rows[3] = 7.0
    made = task(start=lambda: {"item": rows, "word": rows})
    state = made.init()
    assert (np.asarray(state["tables"]["item"][3]) == 7.0).all()
    drawn = np.asarray(made.random_state()["tables"]["item"])
    others = np.arange(len(drawn)) != 3
    np.testing.assert_array_equal(np.asarray(state["tables"]["item"])[others], drawn[others])
    shapes = jax.eval_shape(made.init)
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, state)
