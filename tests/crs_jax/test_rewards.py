"""Eq. 3-8 of CRS by numbers worked by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import grpo
from core import trie as tries
from crs_jax import r_grpo, rewards

THINK, END = 7, 8


def test_structure_and_length_count_what_lies_between_the_tags():
    tokens = jnp.array(
        [
            [7, 1, 2, 3, 8, 9],  # three tokens
            [7, 8, 1, 1, 1, 1],  # none, but both tags
            [7, 1, 2, 3, 4, 5],  # never closed
            [1, 2, 8, 1, 1, 1],  # never opened
            [8, 7, 1, 1, 1, 1],  # closed before it opens
            [1, 7, 2, 8, 3, 8],  # one token; a second </think> changes nothing
        ]
    )
    reasoning = rewards.reasoning(tokens, THINK, END)
    np.testing.assert_array_equal(reasoning.complete, [True, True, False, False, False, True])
    np.testing.assert_array_equal(reasoning.length, [3, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(rewards.structure(reasoning.complete), [0, 0, -1, -1, -1, 0])
    np.testing.assert_allclose(rewards.length(reasoning.length, 2), [1, 0, 0, 0, 0, 0.5])


def test_accuracy_of_levels_alone_and_of_the_prefix():
    target = jnp.array([3, 5, 6, 0])
    predicted = jnp.array([[3, 5, 6, 9], [3, 0, 6, 0], [0, 5, 6, 0], [0, 0, 0, 0]])
    weights = (1.0, 0.5, 0.25)
    # The last level, which only tells equal items apart, is not scored.
    alone = rewards.accuracy(predicted, target, weights)
    np.testing.assert_allclose(alone, [1.75, 1.25, 0.75, 0.0])
    prefix = rewards.accuracy(predicted, target, weights, prefix=True)
    np.testing.assert_allclose(prefix, [1.75, 1.0, 0.0, 0.0])


def test_validity_of_whole_identifiers():
    trie = tries.build(np.array([[10, 20], [11, 20]]))
    predicted = jnp.array([[[10, 20], [11, 21], [20, 10]]])
    np.testing.assert_array_equal(rewards.validity(trie, predicted), [[1, 0, 0]])


def test_without_an_end_the_sum_is_minus_one_whatever_follows():
    reasoning = rewards.Reasoning(jnp.array([True, False]), jnp.array([2, 0]))
    accuracies, validities = (
        jnp.array([[1.5, 0.0], [1.5, 1.5]]),
        jnp.array([[1.0, 0.0], [1.0, 1.0]]),
    )
    total = rewards.total(reasoning, 4, accuracies, validities)
    np.testing.assert_allclose(total, [[3.0, 0.5], [-1.0, -1.0]])


def test_rank_weights():
    # 1, 1/(1 + ln 2), 1/(1 + ln 3): 1, .590616, .476505; their sum is 2.067121.
    np.testing.assert_allclose(r_grpo.rank_weights(3), [0.483765, 0.285719, 0.230516], atol=1e-6)
    # By base 2: 1, 1/2, 1/(1 + 1.584963) = .386853; the sum is 1.886853.
    np.testing.assert_allclose(
        r_grpo.rank_weights(3, 2.0), [0.529983, 0.264992, 0.205025], atol=1e-6
    )


def test_a_wrong_first_answer_with_the_target_higher_is_worth_more_to_r_grpo_only():
    # Both first answers are wrong; the target (reward 2) stands second in one, third in the other.
    accuracies = jnp.array([[[0.0, 2.0, 0.0]], [[0.0, 0.0, 2.0]]])
    plain = r_grpo.outcome(accuracies, "grpo")
    np.testing.assert_array_equal(plain.reward, [[0.0], [0.0]])
    np.testing.assert_array_equal(plain.answer, [[0], [0]])
    np.testing.assert_array_equal(grpo.advantages(plain.reward), [[0.0], [0.0]])
    ranked = r_grpo.outcome(accuracies, "r_grpo")
    np.testing.assert_array_equal(ranked.answer, [[1], [2]])
    np.testing.assert_allclose(ranked.reward, [[0.571438], [0.461032]], atol=1e-6)
    np.testing.assert_allclose(grpo.advantages(ranked.reward), [[1.0], [-1.0]], atol=1e-5)


def test_ties_go_to_the_best_ranked_answer():
    accuracies = jnp.array([[[1.0, 3.0, 3.0]]])
    assert int(r_grpo.outcome(accuracies, "r_grpo").answer[0, 0]) == 1
    with pytest.raises(ValueError, match="found 'ppo'"):
        r_grpo.outcome(accuracies, "ppo")


def test_the_objective_by_hand():
    """Two trajectories of 2 and 1 tokens, ratios 2, 1/2 and 2, epsilon .2, beta .1."""
    log2 = math.log(2.0)
    old = jnp.log(jnp.array([[[0.25, 0.5]], [[0.25, 0.9]]]))
    current = old + jnp.array([[[log2, -log2]], [[log2, 5.0]]])
    advantage, tokens = jnp.array([[1.0], [-1.0]]), jnp.array([[[1, 1]], [[1, 0]]])
    reference = old
    value, statistics = r_grpo.objective(
        current, old, reference, advantage, tokens, jnp.ones(1), clip_eps=0.2, kl_weight=0.1
    )
    # First: min(2, 1.2) and min(.5, .8), mean .85. Second: min(-2, -1.2) = -2. Mean -.575.
    # k3 with log(ref/p) = -ln 2, ln 2: .5 + ln 2 - 1 = .193147, 2 - ln 2 - 1 = .306853: mean .25;
    # second .193147; mean .2215735.
    assert float(statistics["kl"]) == pytest.approx(0.2215735, abs=1e-6)
    assert float(value) == pytest.approx(-0.575 - 0.02215735, abs=1e-6)
    assert float(statistics["clipped"]) == pytest.approx(1.0)


def test_at_the_start_the_gradient_is_the_advantage_over_the_length():
    log_prob = jnp.log(jnp.full((2, 1, 4), 0.3))
    advantage = jnp.array([[1.0], [-1.0]])
    tokens = jnp.array([[[1, 1, 1, 1]], [[1, 1, 0, 0]]])

    def value(current):
        return r_grpo.objective(
            current, log_prob, log_prob, advantage, tokens, jnp.ones(1), clip_eps=0.2, kl_weight=1.0
        )[0]

    gradient = jax.grad(value)(log_prob)
    # 1/G 1/|o*| A: 1/2 1/4 and -1/2 1/2; the KL's own gradient is 0 here.
    np.testing.assert_allclose(gradient[0, 0], [0.125] * 4, atol=1e-6)
    np.testing.assert_allclose(gradient[1, 0], [-0.25, -0.25, 0, 0], atol=1e-6)


def test_users_that_do_not_count_and_infinite_padding_change_nothing():
    rng = np.random.default_rng(0)
    log_prob = np.log(rng.uniform(0.1, 0.9, (2, 3, 4))).astype(np.float32)
    tokens = np.ones((2, 3, 4), int)
    tokens[:, :, 3] = 0
    log_prob[:, :, 3] = -np.inf
    advantage = rng.normal(size=(2, 3)).astype(np.float32)

    def value(users, current):
        chosen = [a[:, :users] for a in (current, log_prob - 0.1, log_prob, advantage, tokens)]
        mask = jnp.array([1.0, 1.0, 0.0])[:users]
        return r_grpo.objective(*chosen, mask, clip_eps=0.2, kl_weight=0.5)[0]

    assert float(value(3, log_prob)) == pytest.approx(float(value(2, log_prob)), abs=1e-6)
    assert np.isfinite(jax.grad(lambda a: value(3, a))(jnp.asarray(log_prob))).all()
