"""CRS's steps cut over devices: the numbers of one device, and what a pod's compiler is given."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import crs_pod_steps
from benchmarks.pod_compile import compiled_step, topology_devices
from configs import crs_sample
from core.errors import UserError
from core.partitioning import make_mesh
from crs_jax import sharding
from crs_jax.settings import decoder_of
from crs_jax.sft_task import SFTConfig, sft_step


def tiny():
    config = crs_sample.get_config()
    config.model.size, config.model.dtype, config.model.remat = "tiny", "float32", False
    config.semantic_ids.codes = (8, 8, 8)
    config.semantic_ids.last_codes = 8
    config.prompts.max_prompt, config.prompts.max_reasoning = 24, 6
    config.prompts.max_answer = 8
    config.sft.batch_size, config.sft.row_length = 8, 40
    config.rl.batch_size, config.rl.trajectories, config.rl.answers = 8, 2, 3
    return config


def test_parameters_and_moments_are_cut_and_the_rest_is_whole():
    mesh = make_mesh(2, 4)
    (_, _, (state, batch, _)), (_, _, (rl_state, rollout, _)) = crs_pod_steps.steps(
        tiny(), mesh, text_rows=64
    )
    name = "layers/mlp/gate/kernel"
    # [2, 64, 192]: layers whole, width over data, hidden width over table.
    for leaf in (
        state["params"]["trained"][name],
        state["optimizer"][1].mu[name],
        rl_state["reference"][name],
    ):
        assert leaf.sharding.shard_shape(leaf.shape) == (2, 32, 48)
    embedding = state["params"]["trained"]["embedder/embedding"]
    assert embedding.sharding.shard_shape(embedding.shape) == (16, 32)
    assert state["step"].sharding.is_fully_replicated
    assert batch["tokens"].sharding.shard_shape((8, 40)) == (1, 40)
    assert batch["rate"].sharding.is_fully_replicated
    assert rollout["prompts"].sharding.shard_shape((8, 24)) == (1, 24)
    assert rollout["trie"].items.sharding.is_fully_replicated
    with pytest.raises(UserError, match="multiple of 8 chips, found 9"):
        crs_pod_steps.steps(tiny(), mesh, batch_size=9, text_rows=64)
    config = tiny()
    config.model.dtype = "int8"
    with pytest.raises(UserError, match=r"config\.model\.dtype of float32"):
        crs_pod_steps.steps(config, mesh, text_rows=64)


@pytest.mark.slow
def test_a_step_on_a_mesh_is_that_of_one_device():
    mesh = make_mesh(4, 2)
    config = tiny()
    network = decoder_of(config, 64, 32)
    settings = SFTConfig(**config.sft.to_dict())
    shapes = crs_pod_steps.abstract_state(network, settings, False)
    rng = np.random.default_rng(0)

    def fill(leaf):
        if leaf.dtype == jnp.float32:
            return jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.float32)
        return jnp.zeros(leaf.shape, leaf.dtype)

    state = jax.tree.map(fill, shapes)
    # Second moments are never negative.
    state["optimizer"] = jax.tree.map(jnp.abs, state["optimizer"])
    batch = {
        "tokens": rng.integers(0, 64, (8, 32)).astype(np.int32),
        "segments": np.ones((8, 32), np.int32),
        "positions": np.tile(np.arange(32, dtype=np.int32), (8, 1)),
        "answers": rng.random((8, 32)) < 0.3,
        "rate": np.float32(1),
    }
    step = sft_step(network, settings)
    expected, statistics = jax.jit(step)(state, batch, jnp.float32(0.01))
    partition = sharding.partition_of(network.config, mesh)
    placed = jax.device_put(state, partition.shardings(state))
    cut = partition.put_part(batch)
    updated, again = jax.jit(step)(placed, cut, jnp.float32(0.01))
    assert float(again["loss"]) == pytest.approx(float(statistics["loss"]), abs=1e-5)
    for name, leaf in expected["params"]["trained"].items():
        np.testing.assert_allclose(
            updated["params"]["trained"][name], leaf, atol=1e-4, err_msg=name
        )


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU's compiler, is not installed",
)
def test_both_steps_compile_for_a_pod():
    mesh = crs_pod_steps.mesh_of(tiny(), topology_devices("v5e:2x4"))
    steps = [
        compiled_step(name, step, (0,), *arguments)
        for name, step, arguments in crs_pod_steps.steps(tiny(), mesh, text_rows=64)
    ]
    assert [step.name for step in steps] == ["sft", "rl"]
    assert all(0 < step.peak < 2**30 for step in steps)
