"""The joint task: Eq. 12 and the schedule by hand, accumulation, packing, and where it goes on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from core.loop import compile_step
from core.partitioning import make_mesh, path_name
from core.schedules import rate_at
from gensar_jax import sharding
from gensar_jax.joint_task import (
    ROW_MULTIPLE,
    JointConfig,
    JointTask,
    packed_batch,
    token_losses,
)
from gensar_jax.prompts import Example
from gensar_jax.t5.config import of_size
from gensar_jax.t5.network import Transformer

WORDS = 20
SETTINGS = {
    "batch_size": 12,
    "row_inputs": 16,
    "row_targets": 12,
    "accumulate": 1,
    "epochs": 2.0,
    "warmup": 0.25,
    "weight_decay": 0.0,
    "clip_norm": 100.0,
}


def stream(start, stop):
    """Example i of the endless stream is the same whoever asks for it."""
    found = []
    for place in range(start, stop):
        rng = np.random.default_rng(place)
        found.append(
            Example(
                [*rng.integers(3, WORDS, rng.integers(3, 9)).tolist(), 1],
                [*rng.integers(3, WORDS, rng.integers(1, 5)).tolist(), 1],
            )
        )
    return found


def task_of(mesh=(1, 1), dropout_rate=0.0, packed_for=None, **changes):
    network = Transformer(of_size("tiny", WORDS, dropout_rate=dropout_rate))
    return JointTask(
        network,
        JointConfig(**SETTINGS | changes),
        partition=sharding.partition_of(network, make_mesh(*mesh)),
        packed_for=packed_for,
        stream=stream,
        examples_per_epoch=48,
        evaluate=lambda params, tables: {"ndcg@5/neg99/exact": 0.5},
        selection="ndcg@5/neg99/exact",
        tables={"identifiers": np.arange(8, dtype=np.uint8)},
        seed=0,
    )


def test_the_loss_by_hand():
    # Two of three tokens likelier by e: -log(e / (e + 2)) = log(1 + 2/e) = .5514; uniform: log 3.
    logits = jnp.array([[[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]])
    losses = token_losses(logits, jnp.array([[1, 2, 0]]))
    np.testing.assert_allclose(losses, [[0.551445, 1.098612, 0.0]], atol=1e-5)


def test_the_rate_rises_and_falls_as_a_cosine():
    rates = [float(rate_at(jnp.int32(step), 8, 0.25)) for step in range(8)]
    # Two updates of warm-up: 1/2, then 1; then (1 + cos(pi k / 6)) / 2 for k = 1..6.
    expected = [0.5, 1.0, 0.9330, 0.75, 0.5, 0.25, 0.0670, 0.0]
    np.testing.assert_allclose(rates, expected, atol=1e-4)


def test_a_batch_holds_each_example_once_in_whole_rows():
    for accumulate in (1, 2):
        config = JointConfig(**SETTINGS | {"accumulate": accumulate})
        examples = stream(0, 12)
        batch = packed_batch(examples, config)
        rows = batch["encoder_input_tokens"].shape[0]
        assert rows % (ROW_MULTIPLE * accumulate) == 0
        found = []
        for row in range(rows):
            segments = batch["encoder_segment_ids"][row]
            for segment in range(1, segments.max() + 1):
                own = batch["decoder_segment_ids"][row] == segment
                found.append(
                    (
                        batch["encoder_input_tokens"][row][segments == segment].tolist(),
                        batch["decoder_target_tokens"][row][own].tolist(),
                    )
                )
        assert sorted(found) == sorted(map(tuple, examples))


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_whole_batch():
    whole, parts = task_of(), task_of(accumulate=2)
    state = whole.init()
    assert np.abs(jax.tree.leaves(state["params"])[0]).max() > 0
    step = lambda task: jax.jit(task.train_step)(  # noqa: E731
        state, next(task.batches(0)), np.float32(0.01)
    )
    (one, loss), (other, same_loss) = step(whole), step(parts)
    np.testing.assert_allclose(loss["loss"], same_loss["loss"], rtol=1e-5)
    # Adam's first step has the gradient's signs alone: compare its moments.
    for ours, theirs in zip(
        jax.tree.leaves(other["optimizer"]), jax.tree.leaves(one["optimizer"]), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    # And the loss is the mean of -log p over every target of the twelve examples, one by one.
    network = whole.network
    apply = jax.jit(functools.partial(network.apply, enable_dropout=False))
    total, tokens = 0.0, 0
    for inputs, targets in stream(0, 12):
        arrays = [np.array([x], np.int32) for x in (inputs, [0, *targets[:-1]], targets)]
        padded = [np.pad(a, ((0, 0), (0, 12 - a.shape[1]))) for a in arrays]
        logits = np.asarray(apply({"params": state["params"]}, *padded), np.float64)[0]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        total -= sum(log_p[i, t] for i, t in enumerate(targets))
        tokens += len(targets)
    np.testing.assert_allclose(loss["loss"], total / tokens, rtol=1e-4)


def test_batches_go_on_at_any_step():
    task = task_of(row_inputs=12, row_targets=8)
    assert task.steps_per_epoch == 4 and task.max_steps == 8
    every = task.batches(0)
    first = [next(every) for _ in range(40)]
    third = first[2]
    # One shape for all, although batches of their own would not have one.
    assert len({batch["encoder_input_tokens"].shape for batch in first}) == 1
    own = [packed_batch(stream(12 * s, 12 * s + 12), task.config) for s in range(40)]
    assert len({batch["encoder_input_tokens"].shape for batch in own}) == 2
    for name, array in next(task.batches(2)).items():
        np.testing.assert_array_equal(array, third[name])


def trained(task, steps):
    """(losses of the first updates, parameters after them)"""
    state, losses = task.init(), []
    step = compile_step(task, state)
    batches = task.batches(0)
    for _ in range(steps):
        batch = next(batches)
        batch = batch if task.partition is None else task.partition.put_part(batch)
        state, values = step(state, batch, np.float32(0.01))
        losses.append(float(values["loss"]))
    return losses, jax.device_get(state["params"])


def test_the_network_is_cut_by_its_logical_axes():
    network = Transformer(of_size("tiny", 22))
    partition = sharding.partition_of(network, make_mesh(2, 4))
    state = jax.eval_shape(task_of(mesh=(2, 4)).init)
    specs = {
        path_name(path): leaf.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(partition.shardings(state))
    }
    cut, whole = PartitionSpec("model"), PartitionSpec()
    assert specs["params/encoder/layers_0/mlp/wo/kernel"] == cut
    assert specs["params/encoder/layers_0/mlp/wi/kernel"] == PartitionSpec(None, "model")
    assert specs["optimizer/1/nu/decoder/layers_0/self_attention/query/kernel"] == PartitionSpec(
        None, "model"
    )
    assert specs["params/encoder/layers_0/pre_mlp_layer_norm/scale"] == whole
    # 22 words and 2 heads do not divide by 4.
    assert specs["params/token_embedder/embedding"] == whole
    assert specs["params/encoder/relpos_bias/rel_embedding"] == whole
    assert dict(sharding.rules_of(network, 2))["(^|/)token_embedder/embedding$"] == cut
    assert sharding.partition_of(network, make_mesh(1, 1)) is None


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_mesh_trains_alike(accumulate):
    """Dropout included; batches hold the same examples in more rows."""
    # The mesh of eight needs more rows, and dropout's draws depend on how many there are.
    settings = {"dropout_rate": 0.1, "accumulate": accumulate, "packed_for": 8}
    meshes = [(2, 1), (1, 2), (2, 4)]
    whole = task_of(**settings)
    losses, params = trained(whole, 4)
    assert losses[0] != pytest.approx(losses[3], rel=1e-3)
    for mesh in meshes:
        task = task_of(mesh=mesh, **settings)
        found, others = trained(task, 4)
        np.testing.assert_allclose(found, losses, rtol=1e-5)
        for ours, theirs in zip(jax.tree.leaves(others), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("change", [{"epochs": 0.0}, {"accumulate": 0}, {"warmup": 1.0}])
def test_settings_that_cannot_be(change):
    with pytest.raises(ValueError, match="expected"):
        JointConfig(**SETTINGS | change)
