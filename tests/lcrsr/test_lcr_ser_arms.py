"""Arms of LCR-SER's two stages, stacked, against the same runs alone: losses of 50 updates."""

import os
import pathlib
import subprocess
import sys

import jax
import jobs
import numpy as np
import pytest
from small_batches import ITEMS, USERS, WORDS, config, ragged_batch

from core.loop import LoopConfig, compile_step
from core.metric_writers import read_lines
from core.workdir import Workdir
from lcrsr.evaluation import Evaluator
from lcrsr.history_encoder import Dropout
from lcrsr.lcr_ser import LCRSERRanker, LossConfig
from lcrsr.model import LCRSER
from lcrsr.ranker_task import RankerTask, TrainConfig
from lcrsr.reinforce import ReinforceConfig, ReinforceTask
from studies.ablation.arms import Arm, run_arms

UPDATES = 50
MODEL = LCRSER(config(max_steps=1, dropout=0.1))
COMMON = {
    "steps_per_epoch": 1,
    "batch_size": 6,
    "evaluate": lambda params, tables: {"score": 0.0},
    "selection": "score",
}


def batches_of(seed):
    return lambda start: (ragged_batch(1000 * seed + step) for step in range(start, 10**6))


def ranker(active_steps, lambda_tcl=0.1, margin=0.1):
    loss = LossConfig(
        recommendation="bce",
        lambda_tcl=lambda_tcl,
        margin=margin,
        distance="cosine",
        stop_gradient="none",
        active_steps=active_steps,
    )
    return LCRSERRanker(MODEL, loss)


def train_task(active_steps=1, lambda_tcl=0.1, margin=0.1, seed=0):
    return RankerTask(
        name="train",
        ranker=ranker(active_steps, lambda_tcl, margin),
        config=TrainConfig(lambda_l2=1e-3, user_dropout=0.3, table_update="touched_rows"),
        table_sizes={"num_users": USERS, "num_items": ITEMS, "num_words": WORDS},
        example_batch=ragged_batch(),
        batches=batches_of(seed),
        seed=seed,
        **COMMON,
    )


def reinforce_task(active_steps=1, gamma=0.5, lambda_kl=0.1, seed=0):
    return ReinforceTask(
        model=MODEL,
        config=ReinforceConfig(
            trajectories=3,
            gamma=gamma,
            reward="ndcg@5",
            policy="softmax",
            lambda_kl=lambda_kl,
            updates_per_rollout=1,
            clip_eps=0.0,
            trainable="dense",
            active_steps=active_steps,
        ),
        initial=train_task(active_steps, seed=seed).init(),
        batches=batches_of(seed),
        seed=seed,
        **COMMON,
    )


PRETRAIN = [train_task(0), train_task(1, lambda_tcl=0.5, margin=0.3, seed=1)]
RL = [reinforce_task(1), reinforce_task(0, gamma=1.0, lambda_kl=2.0)]
RATES = [1e-2, 3e-3]


@pytest.mark.parametrize(("active_steps", "moves"), [(0, False), (1, True)])
def test_rl_without_a_reasoning_step_changes_nothing(active_steps, moves):
    task = reinforce_task(active_steps)
    state = task.init()
    # Rounding tells equal policies apart in some batches; this is far more of the same.
    state["params"] = jax.tree.map(lambda p: 1.001 * p, state["params"])
    before = jax.tree.map(np.asarray, state["params"])
    batch = next(task.batches(0))
    after, stats = jax.jit(task.train_step)(state, batch, np.float32(1e-3))
    assert float(stats["kl"]) > 0
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, after["params"])
    assert all(jax.tree.leaves(same)) is not moves


def test_evaluators_that_share_programs_rank_by_their_own_steps():
    state = train_task(seed=3).init()
    # Weights and rows so large that the reasoning step tells on the ranks.
    params = jax.tree.map(lambda p: 3 * p, state["params"])
    tables = {name: 20 * table for name, table in state["tables"].items()}
    batches = [ragged_batch(seed, candidates=20) for seed in range(5)]
    evaluators = [Evaluator(ranker(k), ("ndcg@10",)) for k in (0, 1)]

    def ranked(evaluator):
        return evaluator.sampled(params, tables, batches).per_example()["ndcg@10"]

    alone = [ranked(evaluator) for evaluator in evaluators]
    assert np.abs(alone[0] - alone[1]).max() > 0.1
    one, other = evaluators
    other.share_programs(one)
    np.testing.assert_allclose(ranked(other), alone[1], atol=1e-6)
    np.testing.assert_allclose(ranked(one), alone[0], atol=1e-6)


def loop_config(rate):
    return LoopConfig(
        max_steps=UPDATES,
        eval_every=UPDATES,
        checkpoint_every=UPDATES,
        log_every=1,
        learning_rate=rate,
        min_learning_rate=rate,
        plateau_factor=1.0,
        plateau_patience=9,
        stop_patience=9,
    )


def greatest_difference(tasks, folder):
    """Between the losses of all updates, stacked and alone."""
    workdirs = [Workdir(str(folder / str(place))) for place in range(len(tasks))]
    arms = [
        Arm(str(place), task, loop_config(RATES[place]), workdirs[place])
        for place, task in enumerate(tasks)
    ]
    assert run_arms(arms, together=len(arms), devices=jax.devices()[:1]) == {}
    differences, alone = [], []
    for task, rate, workdir in zip(tasks, RATES, workdirs):
        state = task.init()
        step, batches = compile_step(task, state), task.batches(0)
        alone.append([])
        for _ in range(UPDATES):
            state, stats = step(state, next(batches), np.float32(rate))
            alone[-1].append(float(stats["loss"]))
        lines = read_lines(workdir.file("metrics.jsonl"))
        losses = [line["train/loss"] for line in lines if "train/loss" in line]
        differences.append(np.abs(np.subtract(losses, alone[-1])).max())
    # Arms that had all become the same would prove nothing.
    assert min(np.abs(np.subtract(alone[0], other)).max() for other in alone[1:]) > 1e-2
    return max(differences)


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [PRETRAIN, RL], ids=["train", "rl"])
def test_losses_of_stacked_arms_are_those_alone(tasks, tmp_path):
    assert greatest_difference(tasks, tmp_path) < 1e-3


DOUBLE = """
import pathlib, sys
import jax.numpy as jnp
jnp.float32 = jnp.float64  # what the network calls float32, in double precision
import test_lcr_ser_arms as arms
losses = arms.greatest_difference(arms.PRETRAIN, pathlib.Path(sys.argv[1]))
print("difference", losses)
"""


@pytest.mark.slow
def test_in_double_precision_they_agree_to_the_sixth_place(tmp_path):
    here = pathlib.Path(__file__).parent
    paths = [str(here), str(here.parent), str(here.parent.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", DOUBLE, str(tmp_path)],
        env={
            **os.environ,
            "JAX_ENABLE_X64": "1",
            "XLA_FLAGS": jobs.xla_flags(1),
            "PYTHONPATH": os.pathsep.join(paths),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1e-6


def test_dropout_mapped_over_keys_draws_what_each_key_draws_alone():
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 3)
    x = np.ones((5, 7), np.float32)
    mapped = jax.vmap(lambda key: Dropout(key, 0.5)(x))(keys)
    alone = np.stack([Dropout(key, 0.5)(x) for key in keys])
    np.testing.assert_array_equal(mapped, alone)
    assert len({row.tobytes() for row in alone}) == 3
