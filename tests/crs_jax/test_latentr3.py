"""LatentR3: thoughts by hand, what pads and orders must not change, both stages, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import trie as tries
from crs_jax import generation, lora
from crs_jax.baselines.latentr3 import (
    LatentInference,
    LatentRLSettings,
    LatentTask,
    ThoughtAttention,
    ThoughtSettings,
    advantages,
    answer_log_probs,
    attention_alone,
    attention_params,
    latent_rl_step,
    latent_sft_step,
    objective,
    rewards,
    with_attention,
)
from crs_jax.decoder import Decoder, init_params
from crs_jax.decoder_config import DecoderConfig
from crs_jax.inference import Inference
from crs_jax.packing import prompt_array
from crs_jax.rl_task import Tokens
from crs_jax.sft_task import SFTConfig

END = 3
CONTROLS = Tokens(1, 2, END)
ITEMS = np.array([[12, 16], [12, 17], [13, 16], [13, 18], [14, 19], [14, 20]], np.int32)
CONFIG = DecoderConfig(
    text_rows=12, new_rows=9, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp_dim=32
)
NETWORK = Decoder(CONFIG)
ONE = ThoughtSettings(count=1, rope_theta=1000.0)
TWO = ThoughtSettings(count=2, rope_theta=1000.0)
SFT = SFTConfig(batch_size=4, row_length=16, warmup=0.1, weight_decay=0.0, clip_norm=1.0)
RL = LatentRLSettings(
    batch_size=4,
    trajectories=3,
    noise=1.5,
    updates_per_rollout=1,
    clip_low=0.2,
    clip_high=0.28,
    warmup=0.1,
    weight_decay=0.0,
    clip_norm=1.0,
)
PROMPTS = [[4, 5, 6], [7, 8], [9, 10, 11, 4, 5], [6]]


def none_of(settings):
    """Thoughts that are not there, which the config refuses."""
    object.__setattr__(settings, "count", 0)
    return settings


def params_of():
    start = lora.split(init_params(CONFIG, jax.random.key(0)), False)
    # Apart from each other, as trained ones are.
    start = jax.tree.map(lambda leaf: leaf * 5, start)
    return with_attention(start, attention_params(16, 1000.0, jax.random.key(1)))


@pytest.fixture(scope="module")
def params():
    return params_of()


def batch_of(prompts=PROMPTS, width=6):
    tokens, lengths = prompt_array(prompts, width)
    answers = np.concatenate([ITEMS[:4], np.full((4, 1), END)], 1).astype(np.int32)
    return {"prompts": tokens, "lengths": lengths, "answers": answers, "mask": np.ones(4)}


_log_probs = jax.jit(answer_log_probs, static_argnums=(0, 3))


def log_probs(params, batch, settings=ONE, noise=None):
    return np.asarray(_log_probs(NETWORK, lora.whole(params), batch, settings, noise))


def test_without_thoughts_it_is_the_plain_decoder(params):
    batch, whole = batch_of(), lora.whole(params)
    none = none_of(ThoughtSettings(count=1, rope_theta=1000.0))
    expected = generation.teacher_forced(
        NETWORK,
        whole,
        *(batch["prompts"], batch["lengths"], batch["answers"][:, None]),
        np.full((4, 1), 3),
    )
    np.testing.assert_allclose(log_probs(params, batch, none), expected, atol=1e-5)
    trie = tries.build(ITEMS, np.arange(1, 7))
    plain = Inference(NETWORK, CONTROLS, trie, max_reasoning=1, batch_size=4)
    latent = LatentInference(NETWORK, CONTROLS, trie, settings=none, batch_size=4)
    asked = batch["prompts"], batch["lengths"]
    one = plain(params, *asked, width=6, reason=False)
    other = latent(params, *asked, width=6, reason=True)
    np.testing.assert_array_equal(one.items, other.items)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    # With a thought the ranking's scores are others.
    thought = LatentInference(NETWORK, CONTROLS, trie, settings=ONE, batch_size=4)
    assert np.abs(thought(params, *asked, width=6, reason=True).scores - one.scores).max() > 1e-2


def test_a_thought_is_the_attention_over_the_prompt_by_hand(params):
    flat = {
        path.split("/", 1)[1]: np.asarray(leaf)
        for path, leaf in params["trained"].items()
        if path.startswith("latent/")
    }
    rng = np.random.default_rng(0)
    states = rng.standard_normal((1, 1, 4, 16)).astype(np.float32)
    valid = np.array([[True, True, True, False]])
    positions = np.arange(4)[None]

    def project(name, x):
        return x @ flat[f"{name}/kernel"] + flat[f"{name}/bias"]

    def rotated(x, place):
        half = np.arange(8)
        angle = place / 1000.0 ** (half / 8)
        a, b = x[:8], x[8:]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin])

    query = rotated(project("query", states[0, 0, 2]), 2)
    scores = [rotated(project("key", states[0, 0, s]), s) @ query / 4 for s in range(3)]
    weights = np.exp(scores) / np.exp(scores).sum()
    expected = weights @ project("value", states[0, 0, :3])
    tree = lora.whole(params)["latent"]
    found = ThoughtAttention(1000.0).apply(
        {"params": tree}, states[:, :, 2], states, np.array([2]), positions, valid
    )
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("settings", [ONE, TWO])
def test_neither_padding_nor_the_order_of_a_batch_changes_a_prompt(params, settings):
    expected = log_probs(params, batch_of(), settings)
    np.testing.assert_allclose(log_probs(params, batch_of(width=9), settings), expected, atol=1e-5)
    turned = {name: array[::-1].copy() for name, array in batch_of().items()}
    np.testing.assert_allclose(log_probs(params, turned, settings)[::-1], expected, atol=1e-5)
    # What stands in the padding is not read.
    batch = batch_of()
    batch["prompts"] = np.where(np.arange(6) < batch["lengths"][:, None], batch["prompts"], 7)
    np.testing.assert_allclose(log_probs(params, batch, settings), expected, atol=1e-5)


def test_a_trajectory_without_noise_is_the_thought_and_others_are_not(params):
    noise = jax.random.normal(jax.random.key(2), (4, 3, 2, 16)).at[:, 0].set(0.0)
    found = log_probs(params, batch_of(), TWO, noise)
    plain = log_probs(params, batch_of(), TWO)
    np.testing.assert_allclose(found[:, :1], plain, atol=1e-5)
    assert np.abs(found[:, 1:] - plain).max(2).min() > 1e-4
    # Two thoughts are other than one.
    assert np.abs(plain - log_probs(params, batch_of(), ONE)).max() > 1e-2


def test_the_beam_gives_the_scores_of_given_items(params):
    trie = tries.build(ITEMS, np.arange(1, 7))
    inference = LatentInference(NETWORK, CONTROLS, trie, settings=TWO, batch_size=3)
    asked = prompt_array(PROMPTS, 6)
    answers = inference(params, *asked, width=6, reason=True)
    given = inference.scores(params, *asked, ITEMS[answers.items - 1], reason=True)
    np.testing.assert_allclose(given, answers.scores, rtol=1e-5)
    assert answers.reasoning.shape == (4, 0) and not answers.lengths.any()


def test_rewards_and_advantages_by_hand():
    certain = jnp.zeros((1, 2, 3))
    assert rewards(certain).tolist() == [[-1.0, -1.0]]
    halves = jnp.log(jnp.full((1, 1, 4), 0.5))
    assert rewards(halves)[0, 0] == pytest.approx(-2.0)
    # The baseline is that of the noise-free column alone, (-1 - 3) / 2, and the norm the batch's:
    # differences 1, 0, -1, -4 have the norm sqrt(18). The third prompt is padding.
    reward = jnp.array([[-1.0, -2.0], [-3.0, -6.0], [9.0, 9.0]])
    found = advantages(reward, jnp.array([1.0, 1.0, 0.0]))
    expected = np.array([[1, 0], [-1, -4], [0, 0]]) / np.sqrt(18)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    constant = advantages(jnp.full((3, 4), -2.7), jnp.ones(3))
    assert not np.asarray(constant).any()


def test_the_objective_clips_above_and_below_apart():
    old = jnp.zeros((1, 2, 1))
    log_ratios = jnp.log(jnp.array([[[1.5], [0.5]]]))
    # 1.5 counts as 1.28 where it is wanted; .5 as .8 where it is not (the minimum).
    value, clipped = objective(log_ratios, old, jnp.array([[1.0, -1.0]]), jnp.ones(1), RL)
    assert value == pytest.approx((1.28 - 0.8) / 2) and clipped == 1.0
    # Not clipped where the minimum is the ratio's own: -1.5 and .5.
    value, _ = objective(log_ratios, old, jnp.array([[-1.0, 1.0]]), jnp.ones(1), RL)
    assert value == pytest.approx((-1.5 + 0.5) / 2)
    # The first update: every ratio is 1.
    value, clipped = objective(old, old, jnp.array([[0.3, 0.1]]), jnp.ones(1), RL)
    assert value == pytest.approx(0.2) and clipped == 0.0


def task_of(name, step, config, params, steps):
    batch = batch_of()
    return LatentTask(
        name,
        step,
        config,
        prompts=batch["prompts"],
        lengths=batch["lengths"],
        answers=batch["answers"],
        max_steps=steps,
        initial=lambda: jax.tree.map(jnp.copy, params),
        evaluate=lambda params, tables: {"score": 0.0},
        selection="score",
        tables={},
        seed=0,
    )


def run(task, steps, rate):
    step, state, batches, every = jax.jit(task.train_step), task.init(), task.batches(0), []
    for _ in range(steps):
        state, statistics = step(state, next(batches), jnp.float32(rate))
        every.append(jax.tree.map(float, statistics))
    return state, every


def test_the_first_stage_memorises_through_the_thought(params):
    task = task_of("latent_sft", latent_sft_step(NETWORK, SFT, ONE), SFT, params, 60)
    state, every = run(task, 60, 1e-2)
    assert every[0]["loss"] > 1.0 and every[-1]["loss"] < 0.1
    for path, leaf in state["params"]["trained"].items():
        if path.startswith("latent/"):
            moved = np.abs(np.asarray(leaf) - np.asarray(params["trained"][path])).max()
            assert moved > 0, path


def test_the_second_stage_moves_the_attention_alone(params):
    start = attention_alone(params)
    assert all(path.startswith("latent/") for path in start["trained"]) and len(start["kept"]) > 5
    task = task_of("latent_rl", latent_rl_step(NETWORK, RL, ONE), RL, start, 2)
    state, every = run(task, 1, 1e-2)
    for path, leaf in state["params"]["kept"].items():
        np.testing.assert_array_equal(leaf, start["kept"][path])
    for path, leaf in state["params"]["trained"].items():
        assert np.abs(np.asarray(leaf) - np.asarray(start["trained"][path])).max() > 0, path
    # The reward that is told is that of the thoughts without noise, before the update.
    expected = rewards(jnp.asarray(log_probs(params, batch_of()))).mean()
    assert every[0]["reward"] == pytest.approx(float(expected), rel=1e-4)
    assert every[0]["clipped"] == 0.0


def test_the_first_update_follows_log_likelihoods_by_their_advantages():
    old = jnp.log(jnp.array([[[0.5, 0.2], [0.1, 0.4]], [[0.3, 0.3], [0.9, 0.8]]]))
    advantage, mask = jnp.array([[0.5, -0.25], [1.0, 1.0]]), jnp.array([1.0, 0.0])
    found = jax.grad(lambda now: objective(now, old, advantage, mask, RL)[0])(old)
    # Of a prompt that counts: its advantage over 2 trajectories of 2 tokens.
    np.testing.assert_allclose(found[0], [[0.125, 0.125], [-0.0625, -0.0625]], atol=1e-6)
    assert not np.asarray(found[1]).any()
