"""Training and evaluation on meshes of 8 fake devices give one device's numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_batches import ITEMS, USERS, WORDS, config, ragged_batch

from benchmarks.random_tasks import TableSizes, random_windows
from core.checkpoints import Checkpoints
from core.loop import compile_step
from core.partitioning import Partition, make_mesh
from input_pipelines.batches import BatchShape
from lcrsr import losses
from lcrsr.embedding import PARTITION_RULES
from lcrsr.evaluation import Evaluator
from lcrsr.lcr_ser import LCRSERRanker, LossConfig
from lcrsr.model import LCRSER
from lcrsr.ranker_task import RankerTask, TrainConfig
from lcrsr.reinforce import ReinforceConfig, ReinforceTask


class MeanRanker:
    """A small `Ranker` that reads every table and drops out, and compiles in a second."""

    tables = ("user", "item", "word")
    width, init_scale = 8, 0.5

    def init(self, key, batch, rows):
        return {"kernel": jax.random.normal(key, (self.width, self.width))}

    def loss(self, params, batch, rows, tables, key):
        users = self.represent(params, batch, rows)
        kept = jax.random.bernoulli(key, 0.9, users.shape)
        logits = self.score(params, jnp.where(kept, users, 0.0), rows)
        return losses.bce(logits, batch["labels"], batch["mask"]), {}

    def represent(self, params, batch, rows):
        history = rows["rec_items"].mean(1) + rows["clicked_items"].mean((1, 2))
        return (history + rows["query_words"].mean((1, 2)) + rows["user"]) @ params["kernel"]

    def score(self, params, users, rows):
        return jnp.einsum("bd,bnd->bn", users, rows["candidates"])

    def score_catalogue(self, params, users, rows, items):
        return users @ items.T


MODEL = LCRSER(config(max_steps=1, dropout=0.1))
MEAN = MeanRanker()
LCR_SER = LCRSERRanker(
    MODEL,
    LossConfig(
        recommendation="bce",
        lambda_tcl=0.1,
        margin=0.1,
        distance="cosine",
        stop_gradient="none",
        active_steps=1,
    ),
)


def batch_of_8(seed):
    """Two batches of 6 ragged users, 8 of these; the last is padding."""
    first, second = ragged_batch(seed), ragged_batch(seed + 100)
    batch = {name: np.concatenate([first[name], second[name]])[:8] for name in first}
    batch["mask"][7] = 0.0
    return batch


def windows_of_16(seed):
    """8 windows of 2 targets each."""
    shape = BatchShape(rec_length=3, search_length=2, words=3, clicks=2, candidates=4)
    return random_windows(shape, 16, 2, TableSizes(USERS, ITEMS, WORDS), seed)


def partition_of(extents):
    if extents is None:
        return None
    return Partition(make_mesh(*extents), PARTITION_RULES, table_width=MEAN.width)


def train_task(partition, ranker=MEAN, **changes):
    values = {
        "name": "train",
        "ranker": ranker,
        "config": TrainConfig(lambda_l2=1e-2, user_dropout=0.3, table_update="touched_rows"),
        "table_sizes": {"num_users": USERS, "num_items": ITEMS, "num_words": WORDS},
        "example_batch": ragged_batch(),
        "batches": lambda start: map(batch_of_8, range(start, 100)),
        "steps_per_epoch": 1,
        "batch_size": 8,
        "evaluate": lambda params, tables: {},
        "selection": "",
        "seed": 0,
        "partition": partition,
    }
    return RankerTask(**(values | changes))


def reinforce_task(partition, initial, batches):
    return ReinforceTask(
        model=MODEL,
        config=ReinforceConfig(
            trajectories=3,
            gamma=0.5,
            reward="ndcg@5",
            policy="softmax",
            lambda_kl=0.1,
            updates_per_rollout=2,
            clip_eps=0.0,
            trainable="all",
            active_steps=1,
        ),
        initial=initial,
        batches=batches,
        steps_per_epoch=1,
        batch_size=8,
        evaluate=lambda params, tables: {},
        selection="",
        seed=0,
        partition=partition,
    )


def train(task, count, rate):
    """(last state, losses) of `count` updates, as the loop does them."""
    state, losses = task.init(), []
    step, batches = compile_step(task, state), task.batches(0)
    put = (lambda b: b) if task.partition is None else task.partition.put_batch
    for _ in range(count):
        state, stats = step(state, put(next(batches)), jnp.float32(rate))
        losses.append(float(stats["loss"]))
    return state, losses


@functools.cache
def trained(extents):
    return train(train_task(partition_of(extents)), 3, 1e-2)


@pytest.mark.parametrize("extents", [(1, 2), (4, 1), (2, 4), (1, 8)])
def test_the_same_losses_and_rows_as_one_device(extents):
    state, found_losses = trained(extents)
    expected, expected_losses = trained(None)
    np.testing.assert_allclose(found_losses, expected_losses, rtol=1e-5)
    assert len(set(expected_losses)) == 3
    for name, table in expected["tables"].items():
        rows = np.asarray(state["tables"][name]).reshape(-1, MEAN.width)
        # Adam divides by the root of the second moment, so that rounding of tiny gradients shows.
        np.testing.assert_allclose(rows[: len(table)], table, atol=1e-4)
        assert np.all(rows[len(table) :] == 0)


def test_every_device_holds_its_own_rows_only():
    state, _ = trained((2, 4))
    item = state["tables"]["item"]
    # 16 rows of 8 fill one of 128 lanes.
    assert item.shape == (256, 128)
    assert item.sharding.shard_shape(item.shape)[0] == 64
    for moment in state["table_states"]["item"]:
        assert moment.sharding == item.sharding
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state["params"]))


@pytest.mark.slow
@pytest.mark.parametrize("make", [batch_of_8, windows_of_16])
def test_both_stages_of_lcr_ser(make):
    """RL trains tables too and keeps snapshots, so that every kind of array lies on the mesh."""
    batches = {"batches": lambda start: map(make, range(start, 100))}
    partition = partition_of((2, 4))
    alone, expected = train(train_task(None, LCR_SER, **batches), 3, 1e-2)
    cut, losses = train(train_task(partition, LCR_SER, **batches), 3, 1e-2)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    start, placed = filled(alone, partition)
    _, expected = train(reinforce_task(None, start, **batches), 3, 1e-2)
    state, losses = train(reinforce_task(partition, placed, **batches), 3, 1e-2)
    np.testing.assert_allclose(losses, expected, atol=1e-5)  # losses near 0
    for which in ("old", "reference"):
        assert state[which]["tables"]["item"].sharding == cut["tables"]["item"].sharding


def filled(state, partition):
    """A state of one device with its tables filled up, there and packed on the mesh."""

    def fill(table):
        return jnp.pad(table, ((0, partition.row_multiple - len(table)), (0, 0)))

    start = {"params": state["params"], "tables": jax.tree.map(fill, state["tables"])}
    packed = {name: table.reshape(256, 128) for name, table in start["tables"].items()}
    packed = start | {"tables": packed}
    return start, jax.device_put(packed, partition.shardings(packed))


def test_ranking_is_merged_over_devices():
    expected_state, _ = trained(None)
    batch = batch_of_8(5)
    seen = np.asarray(batch["rec_items"])
    seen = np.where(seen == batch["candidates"][:, :1], 0, seen)
    whole = Evaluator(MEAN, ("hr@5", "ndcg@5"))
    params, tables = expected_state["params"], expected_state["tables"]
    partition = partition_of((2, 4))
    cut = Evaluator(MEAN, ("hr@5", "ndcg@5"), num_items=ITEMS, partition=partition)
    _, state = filled(expected_state, partition)
    for way, batches in (("sampled", [batch]), ("full", [(batch, seen)])):
        expected = getattr(whole, way)(params, tables, batches)
        sums = getattr(cut, way)(state["params"], state["tables"], batches)
        assert sums.means() == expected.means()
    # The same ranks by hand: everything seen, and padding, is out of the way of the target.
    vectors = {name: np.asarray(table) for name, table in tables.items()}
    history = vectors["item"][batch["rec_items"]].mean(1)
    history += vectors["item"][batch["clicked_items"]].mean((1, 2)) + vectors["user"][batch["user"]]
    history += vectors["word"][batch["query_words"]].mean((1, 2))
    by_hand = history @ np.asarray(params["kernel"]) @ vectors["item"].T
    hits = 0.0
    for row in range(7):
        target = batch["candidates"][row, 0]
        others = np.setdiff1d(np.arange(1, ITEMS + 1), [target, *seen[row]])
        hits += (by_hand[row, others] > by_hand[row, target]).sum() < 5
    assert sums.means()["hr@5"] == pytest.approx(hits / 7)
    items, scores = whole.top_k(params, tables, batch, seen, 15)
    found_items, found_scores = cut.top_k(state["params"], state["tables"], batch, seen, 15)
    np.testing.assert_array_equal(found_items, items)
    np.testing.assert_allclose(found_scores, scores, atol=1e-5)


@pytest.mark.parametrize(
    ("before", "extents"),
    [((1, 2), None), ((1, 2), (1, 2)), ((1, 2), (2, 4)), (None, (2, 4)), ((1, 2), (4, 1))],
)
def test_a_checkpoint_restores_on_other_devices(before, extents, tmp_path):
    saved, _ = trained(before)
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(3, saved, {"step": 3}, None)
    checkpoints.wait()
    partition = partition_of(extents)
    shapes = jax.eval_shape(train_task(partition).random_state)
    like = shapes if partition is None else partition.abstract(shapes)
    state, _, _ = checkpoints.restore(like)
    checkpoints.close()
    for name, wanted in shapes["tables"].items():
        assert state["tables"][name].shape == wanted.shape
        for part in (lambda s: s["tables"][name], lambda s: s["table_states"][name][1]):  # noqa: B023
            restored, expected = (
                np.asarray(part(s)).reshape(-1, MEAN.width) for s in (state, saved)
            )
            rows = min(len(restored), len(expected))
            np.testing.assert_array_equal(restored[:rows], expected[:rows])
            assert rows > 6 and np.any(restored[:rows]) and not np.any(restored[rows:])
    if partition is not None:
        assert state["tables"]["item"].sharding == like["tables"]["item"].sharding
