"""Eq. 15-17 by hand-worked numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import grpo


def test_advantages_are_standardised_by_the_population():
    # Rewards 1, 0, 0, 1: mean .5, population std .5.
    rewards = jnp.array([[1.0], [0.0], [0.0], [1.0]])
    assert grpo.advantages(rewards)[:, 0].tolist() == [1.0, -1.0, -1.0, 1.0]
    # 3, 0, 0: mean 1, std sqrt((4 + 1 + 1) / 3) = sqrt 2; the sample std would be sqrt 3.
    advantages = grpo.advantages(jnp.array([[3.0], [0.0], [0.0]]))[:, 0]
    np.testing.assert_allclose(advantages, [2**0.5, -(0.5**0.5), -(0.5**0.5)], rtol=1e-6)


def test_equal_rewards_have_no_advantage():
    rewards = jnp.full((7, 2), 0.1)  # a mean of seven tenths is not exactly a tenth
    assert np.all(np.asarray(grpo.advantages(rewards)) == 0.0)


def test_kl_is_zero_at_equality_and_never_negative():
    log_prob = jnp.log(jnp.array([0.5, 0.2, 1e-6]))
    assert np.all(np.asarray(grpo.kl_k3(log_prob, log_prob)) == 0.0)
    # ref/p = 2: 2 - log 2 - 1.
    divergence = grpo.kl_k3(jnp.log(jnp.array(0.2)), jnp.log(jnp.array(0.4)))
    assert float(divergence) == pytest.approx(1 - np.log(2), abs=1e-6)
    rng = np.random.default_rng(0)
    noise = jnp.asarray(rng.standard_normal(10_000) * 1e-3, jnp.float32)
    assert float(grpo.kl_k3(noise, jnp.zeros(10_000)).min()) >= 0.0


def objective(log_prob, **changes):
    values = {
        "old_log_prob": jnp.log(jnp.array([[0.2], [0.5]])),
        "reference_log_prob": jnp.log(jnp.array([[0.4], [0.5]])),
        "advantage": jnp.array([[1.0], [-1.0]]),
        "mask": jnp.ones(1),
        "kl_weight": 0.1,
    }
    return grpo.objective(log_prob, **(values | changes))


def test_the_objective_by_hand():
    # Ratios .4/.2 = 2 and .5/.5 = 1; (2 * 1 + 1 * -1) / 2 = .5; no KL: the references are equal.
    value, statistics = objective(jnp.log(jnp.array([[0.4], [0.5]])))
    assert float(value) == pytest.approx(0.5, abs=1e-6)
    assert float(statistics["ratio"]) == pytest.approx(1.5, abs=1e-6)
    # p = .2 against ref .4 costs .1 * (1 - log 2) / 2; the ratios are 1, the gains cancel.
    value, statistics = objective(jnp.log(jnp.array([[0.2], [0.5]])))
    assert float(value) == pytest.approx(-0.1 * (1 - np.log(2)) / 2, abs=1e-6)
    assert float(statistics["unequal_groups"]) == 1.0


def test_clipping_caps_the_gain_only_when_asked():
    value, _ = objective(jnp.log(jnp.array([[0.4], [0.5]])), clip_eps=0.2)
    assert float(value) == pytest.approx((1.2 - 1.0) / 2, abs=1e-6)


def test_padding_counts_nothing():
    two = jnp.log(jnp.array([[0.4, 0.9], [0.5, 0.9]]))
    old = jnp.log(jnp.array([[0.2, 0.1], [0.5, 0.1]]))
    value, _ = grpo.objective(
        two,
        old,
        two,
        jnp.array([[1.0, 5.0], [-1.0, 5.0]]),
        jnp.array([1.0, 0.0]),
        kl_weight=0.1,
    )
    assert float(value) == pytest.approx(0.5, abs=1e-6)


def test_gradients_reach_the_current_policy_alone():
    log_prob = jnp.log(jnp.array([[0.4], [0.5]]))

    def value(current, old, reference):
        return grpo.objective(
            current, old, reference, jnp.array([[1.0], [-1.0]]), jnp.ones(1), kl_weight=0.1
        )[0]

    gradients = jax.grad(value, argnums=(0, 1, 2))(log_prob, log_prob, log_prob)
    # d/dlogp of ratio * A / N at ratio 1 is A / 2.
    np.testing.assert_allclose(gradients[0][:, 0], [0.5, -0.5], atol=1e-6)
    assert not np.any(gradients[1]) and not np.any(gradients[2])
