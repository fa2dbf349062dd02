"""The tasks of benchmarks and of compile checks, for every form of LCR-SER's config."""

import jax
import numpy as np
import pytest

from benchmarks.random_tasks import RandomTasks, TableSizes
from configs import lcr_ser
from input_pipelines.batches import BatchShape

SHAPE = BatchShape(rec_length=6, search_length=6, words=3, clicks=2, candidates=100)


@pytest.mark.parametrize("choice", ["qilin", "qilin,paper"])
@pytest.mark.parametrize("targets", [1, 2])
def test_both_stages_are_traced_and_evaluated(choice, targets):
    config = lcr_ser.get_config(choice)
    tasks = RandomTasks(config, SHAPE, TableSizes(users=20, items=300, words=30), width=8)
    train = tasks.train(64, targets)
    state, batch = jax.eval_shape(train.random_state), next(train.batches(0))
    # On its own the recipe shares 1,024 negatives, and the printed form has 4 a target.
    assert batch["candidates"].shape == (64, 17 if choice == "qilin" else 5)
    _, statistics = jax.eval_shape(train.train_step, state, batch, np.float32(1e-3))
    assert statistics["loss"].shape == ()
    rl = tasks.reinforce(8, state, 20, targets)
    rl_state = jax.eval_shape(rl.state_from, state)
    _, statistics = jax.eval_shape(rl.train_step, rl_state, next(rl.batches(0)), np.float32(1e-3))
    assert statistics["loss"].shape == ()
