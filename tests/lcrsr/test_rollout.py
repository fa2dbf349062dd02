"""GRPO on LCR-SER: noise, ratios, gradients, and rewards that rise for the right reason."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from small_batches import ITEMS, config, forward, ragged_batch, setup

from core import grpo
from lcrsr import rollout
from lcrsr.embedding import look_up

SETTINGS = {
    "active_steps": jnp.int32(3),
    "num_trajectories": 4,
    "gamma": 0.5,
    "reward": "ndcg@5",
    "policy": "softmax",
    "kl_weight": 0.1,
    "clip_eps": None,
}


def world(candidates=6):
    batch = ragged_batch(candidates=candidates)
    model, params, tables = setup(config(), batch)
    return model, params, tables, batch


@functools.partial(jax.jit, static_argnums=0)
def compiled_loss(model, current, old, reference, batch):
    rows = look_up(current.tables, batch)
    key = jax.random.key(0)
    return rollout.grpo_loss(model, current, rows, old, reference, batch, key, **SETTINGS)


def loss(model, params, tables, batch, *, old=None, reference=None):
    current = rollout.Policy(params, tables)
    return compiled_loss(model, current, old, reference or current, batch)


def test_the_first_trajectory_is_free_of_noise():
    model, params, tables, batch = world()
    rows = look_up(tables, batch)
    histories = jax.jit(rollout.encode, static_argnums=0)(model, params, batch, rows)
    draw_noise = jax.jit(rollout.draw_noise, static_argnames="trajectories")
    noise = draw_noise(jax.random.key(0), histories, trajectories=4, gamma=0.5)
    assert noise.rec.shape == (4, 6, 8)
    assert not np.any(noise.rec[0]) and not np.any(noise.search[0])
    # gamma is relative to the RMS of each user's own h^(0).
    many = draw_noise(jax.random.key(0), histories, trajectories=4000, gamma=0.5)
    spread = np.asarray(many.rec[1:]).std(axis=(0, 2))
    rms = np.sqrt(np.square(np.asarray(histories.rec.start)).mean(-1))
    np.testing.assert_allclose(spread, 0.5 * rms, rtol=0.05)
    mapped = jax.jit(lambda noise: rollout.trajectories(model, params, histories, noise, rows, 3))
    logits = mapped(noise)
    plain = forward(model, params, tables, batch, 3).logits
    np.testing.assert_allclose(logits[0], plain, rtol=1e-5, atol=1e-5)
    assert np.abs(logits[1] - logits[0]).max() > 1e-3


def test_ratio_is_one_and_kl_zero_at_the_start():
    model, params, tables, batch = world()
    _, statistics = loss(model, params, tables, batch)
    assert float(statistics["ratio"]) == 1.0
    assert float(statistics["kl"]) == 0.0
    # A snapshot equal to the current policy gives the same, up to rounding.
    _, statistics = loss(model, params, tables, batch, old=rollout.Policy(params, tables))
    assert float(statistics["ratio"]) == pytest.approx(1.0, abs=1e-5)


def test_policies_share_the_noise_and_encode_for_themselves():
    model, params, tables, batch = world()
    other = jax.tree.map(lambda p: p * 1.1, params)
    _, statistics = loss(model, other, tables, batch, reference=rollout.Policy(params, tables))
    assert float(statistics["kl"]) > 0
    _, statistics = loss(model, other, tables, batch, old=rollout.Policy(params, tables))
    assert abs(float(statistics["ratio"]) - 1.0) > 1e-3


def test_gradients_reach_encoders_reasoning_and_rows():
    model, params, tables, batch = world()

    def value(params, rows):
        current, start = rollout.Policy(params, tables), rollout.Policy(start_params, tables)
        return rollout.grpo_loss(
            model, current, rows, None, start, batch, jax.random.key(0), **SETTINGS
        )[0]

    start_params = params
    gradient = jax.jit(jax.grad(value, argnums=(0, 1)))
    gradients, row_gradients = gradient(params, look_up(tables, batch))
    for name in ("step_positions", "positions"):
        assert np.any(gradients["rec"][name]) and np.any(gradients["search"][name]), name
    for part in ("msa", "mca", "ffn"):
        assert np.any(jax.tree.leaves(gradients["search"]["layer_0"][part])[0]), part
    assert np.any(row_gradients["rec_items"])


@pytest.mark.parametrize(
    ("policy", "expected"), [("softmax", np.log(0.5)), ("sigmoid", np.log(1 / (1 + np.exp(-2))))]
)
def test_both_readings_of_the_policy(policy, expected):
    logits = jnp.array([[2.0, 2.0 + np.log(0.5), 2.0 + np.log(0.5)]])
    log_prob = rollout.target_log_prob(logits, policy)
    np.testing.assert_allclose(log_prob, [expected], rtol=1e-6)


def test_the_reasoning_filter_picks_what_only_reasoning_uses():
    _, params, _, _ = world()
    mask = rollout.trainable_mask(params, "reasoning")
    assert all(jax.tree.leaves(mask["rec"]["layer_0"]["mca"])) and mask["rec"]["step_positions"]
    assert not any(jax.tree.leaves(mask["rec"]["layer_0"]["msa"]))
    assert not any(jax.tree.leaves(mask["scorer"]))
    assert all(jax.tree.leaves(rollout.trainable_mask(params, "dense")))
    with pytest.raises(ValueError, match="expected trainable"):
        rollout.trainable_mask(params, "some")


def _rewards(advantage_fn, steps=120):
    """Mean reward of the first and of the last ten steps of training on one small batch.

    Advantages sum to zero over a group, so that worse trajectories are pushed down as hard as
    better ones are pushed up: the reward first falls by about .2 here, and rises after step 60.
    """
    batch = ragged_batch(candidates=10)
    rng = np.random.default_rng(1)
    batch["candidates"] = np.stack([rng.permutation(ITEMS)[:10] + 1 for _ in range(6)]).astype(
        np.int32
    )
    model, params, tables = setup(config(), batch)
    optimizer = optax.adam(1e-2)
    state = optimizer.init(params)
    start = rollout.Policy(params, tables)

    @jax.jit
    def step(params, state, seed):
        def value(params):
            return rollout.grpo_loss(
                model,
                rollout.Policy(params, tables),
                look_up(tables, batch),
                None,
                start,
                batch,
                jax.random.key(seed),
                **(SETTINGS | {"num_trajectories": 8, "gamma": 1.0, "kl_weight": 0.0}),
                advantage_fn=lambda rewards: advantage_fn(rewards, seed),
            )

        gradient, statistics = jax.grad(value, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, statistics["reward"]

    rewards = []
    for seed in range(steps):
        params, state, reward = step(params, state, seed)
        rewards.append(float(reward))
    return np.mean(rewards[:10]), np.mean(rewards[-10:])


@pytest.mark.slow
@pytest.mark.trains
def test_the_reward_rises_and_not_with_permuted_advantages():
    before, after = _rewards(lambda rewards, seed: grpo.advantages(rewards))

    def permuted(rewards, seed):
        key = jax.random.fold_in(jax.random.key(7), seed)
        return jax.random.permutation(key, grpo.advantages(rewards), axis=0, independent=True)

    control_before, control_after = _rewards(permuted)
    assert after - before > 0.3
    assert after - before > (control_after - control_before) + 0.2
