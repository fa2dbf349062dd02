"""CRS's stages on meshes of 8 fake devices: where arrays lie, and the numbers of one device."""

import pathlib

import jax
import numpy as np
import pytest

from core import trie as tries
from core.checkpoints import Checkpoints
from core.errors import UserError
from core.loop import compile_step
from core.partitioning import make_mesh
from crs_jax import decoder_checkpoints, lora, sharding
from crs_jax.decoder import Decoder, init_params
from crs_jax.decoder_config import DecoderConfig
from crs_jax.inference import Inference
from crs_jax.packing import Example, prompt_array
from crs_jax.rl_task import RLConfig, RLTask, Tokens
from crs_jax.sft_task import SFTConfig, SFTTask

FILE = pathlib.Path(__file__).parent.parent / "reference" / "qwen3" / "qwen3.safetensors"
THINK, END_THINK, END = 1, 2, 3
CONTROLS = Tokens(THINK, END_THINK, END)
ITEMS = np.array([[12, 16], [12, 17], [13, 16], [13, 18], [14, 19], [14, 20]], np.int32)
# Over 4 x 2 the one key head is cut in halves; 9 new rows lie whole.
CONFIG = DecoderConfig(
    text_rows=12, new_rows=9, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_dim=32
)
SFT = SFTConfig(batch_size=8, row_length=16, warmup=0.1, weight_decay=0.01, clip_norm=1.0)
RL = RLConfig(
    algorithm="r_grpo",
    batch_size=8,
    trajectories=4,
    answers=3,
    updates_per_rollout=2,
    temperature=1.0,
    top_p=0.95,
    max_reasoning=3,
    length_limit=3,
    accuracy_weights=(1.5,),
    prefix_accuracy=False,
    constrained=False,
    clip_eps=0.2,
    kl_weight=0.01,
    mask_correct_when_negative=False,
    weight_decay=0.0,
    clip_norm=1.0,
)
PROMPTS = [[4 + i % 4, 8 + i % 2, THINK] for i in range(10)]


def task_of(kind, mesh):
    """A task whose network starts at the same random parameters on every mesh."""
    partition = sharding.partition_of(CONFIG, make_mesh(*mesh))
    shared = {
        "initial": lambda: lora.split(init_params(CONFIG, jax.random.key(0), partition), False),
        "evaluate": lambda params, tables: {"score": 0.0},
        "selection": "score",
        "tables": {"identifiers": np.zeros(8, np.uint8)},
        "seed": 0,
        "partition": partition,
    }
    if kind == "sft":
        examples = [
            Example(prompt, [8 + i % 3, END_THINK, *ITEMS[i % 6].tolist(), END])
            for i, prompt in enumerate(PROMPTS)
        ]
        return SFTTask("sft", Decoder(CONFIG), SFT, examples=examples, epochs=8.0, **shared)
    prompts, lengths = prompt_array(PROMPTS, 4)
    return RLTask(
        "rl",
        Decoder(CONFIG),
        RL,
        CONTROLS,
        prompts=prompts,
        lengths=lengths,
        targets=ITEMS[np.arange(10) % 6],
        trie=tries.build(ITEMS, np.arange(6)),
        max_steps=10,
        **shared,
    )


def trained(task, state, first, steps):
    """(the state after `steps` updates from `first` on, the statistics of each)"""
    step, batches, every = compile_step(task, state), task.batches(first), []
    for _ in range(steps):
        batch = next(batches)
        batch = batch if task.partition is None else task.partition.put_part(batch)
        state, statistics = step(state, batch, np.float32(0.01))
        every.append({name: float(value) for name, value in statistics.items()})
    return state, every


def assert_equal(actual, expected):
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)


def answers(mesh, params):
    partition = sharding.partition_of(CONFIG, make_mesh(*mesh))
    trie = tries.build(ITEMS, np.arange(6))
    found = Inference(
        Decoder(CONFIG), CONTROLS, trie, max_reasoning=3, batch_size=8, partition=partition
    )
    return found(params, *prompt_array(PROMPTS, 4), width=3, reason=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_a_mesh_trains_saves_and_answers_like_one_device(kind, tmp_path):
    one, cut = task_of(kind, (1, 1)), task_of(kind, (4, 2))
    _, expected = trained(one, one.init(), 0, 4)
    state, found = trained(cut, cut.init(), 0, 3)
    assert_equal(found, expected[:3])
    assert any(abs(values["loss"]) > 1e-3 for values in found)
    # [1, 16, 32] over 4 x 2, moments alike, after updates too.
    name = "layers/mlp/gate/kernel"
    for leaf in (state["params"]["trained"][name], state["optimizer"][1].mu[name]):
        assert leaf.sharding.shard_shape(leaf.shape) == (1, 4, 16)
    checkpoints = Checkpoints(str(tmp_path / "c"))
    checkpoints.save(3, state, {"step": 3}, None)
    checkpoints.wait()
    restored, _, _ = checkpoints.restore(one.init())
    checkpoints.close()
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(restored))
    on_mesh, alone = answers((4, 2), state["params"]), answers((1, 1), restored["params"])
    np.testing.assert_array_equal(on_mesh.items, alone.items)
    np.testing.assert_array_equal(on_mesh.reasoning, alone.reasoning)
    np.testing.assert_allclose(on_mesh.scores, alone.scores, atol=1e-5)
    # It goes on where the mesh stopped.
    _, rest = trained(one, restored, 3, 1)
    assert_equal(rest, expected[3:])


def test_states_are_made_in_their_parts_and_what_does_not_divide_is_whole():
    state = task_of("rl", (4, 2)).init()
    name = "layers/attention/query/kernel"
    moments = state["optimizer"][1]
    for tree in (state["params"]["trained"], state["reference"], moments.mu, moments.nu):
        assert tree[name].sharding.shard_shape((1, 16, 16)) == (1, 4, 8)
        assert tree["embedder/embedding"].sharding.shard_shape((12, 16)) == (6, 4)
    assert state["step"].sharding.is_fully_replicated
    assert len(state["tables"]["identifiers"].sharding.device_set) == 8
    # 12 words and 16 columns of heads over 1 x 8: the words stay whole.
    rules = dict(sharding.rules_of(CONFIG, make_mesh(1, 8)))
    assert rules["(^|/)embedder/embedding$"] == jax.sharding.PartitionSpec(None, "data")
    assert rules[f"(^|/){name}$"] == jax.sharding.PartitionSpec(None, "data", "model")
    assert sharding.partition_of(CONFIG, make_mesh(1, 1)) is None


def test_batches_are_cut_by_rows_and_what_is_no_row_is_whole():
    task = task_of("rl", (4, 2))
    batch = task.partition.put_part(next(task.batches(0)))
    assert batch["prompts"].sharding.shard_shape((8, 4)) == (1, 4)
    assert batch["trie"].items.sharding.is_fully_replicated
    assert batch["seed"].sharding.is_fully_replicated
    # Rows come in multiples of 8, of 24 on a mesh of 6: 3 x 2.
    task = task_of("sft", (3, 2))
    batch = task.partition.put_part(next(task.batches(0)))
    assert batch["tokens"].shape == (24, 16) and batch["rate"].sharding.is_fully_replicated
    with pytest.raises(UserError, match="a multiple of the mesh's 6 devices, found 8"):
        task.partition.put_part({"tokens": np.zeros((8, 16), np.int32)})


def test_a_checkpoint_of_qwen3_goes_to_its_parts_from_the_host():
    sizes = {"width": 12, "layers": 2, "heads": 6, "kv_heads": 2, "head_dim": 4, "mlp_dim": 20}
    config = DecoderConfig(text_rows=40, new_rows=5, lora_rank=2, **sizes)
    key = jax.random.key(0)
    partition = sharding.partition_of(config, make_mesh(2, 4))
    params = decoder_checkpoints.from_hugging_face(FILE, config, key, partition)
    expected = decoder_checkpoints.from_hugging_face(FILE, config, key)
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    kernel = params["layers"]["mlp"]["down"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 5, 6)
    places = jax.tree.map(lambda leaf: leaf.sharding, params)
    assert places == partition.shardings(params)
