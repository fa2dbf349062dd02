"""Steps told beforehand: what the head learns, and that blocks compute what they should."""

import jax.numpy as jnp
import numpy as np
import pytest
import small_batches

from lcrsr.adaptive import AdaptiveScorer, Head, calibrate, ranking_losses

STEPS = 4


def users_of_hops(number, seed=0):
    """Users who need 0 to 4 steps: fewer leave the target behind, more change nothing."""
    rng = np.random.default_rng(seed)
    hops = rng.integers(0, STEPS + 1, number)
    x = np.eye(STEPS + 1, dtype=np.float32)[hops] + 0.1 * rng.standard_normal((number, STEPS + 1))
    there = np.arange(STEPS + 1) >= hops[:, None]
    return x.astype(np.float32), np.where(there, 0.5, 2.0), np.where(there, 0.9, 0.1), hops


def test_users_get_the_steps_that_they_need():
    x, losses, values, _ = users_of_hops(1000)
    head, calibration = calibrate(x, losses, values, np.arange(1000), 0.001)
    assert calibration.best_fixed == STEPS and calibration.price > 0
    assert calibration.metric >= 0.9 - 0.001 and calibration.mean_steps < 2.2
    x, _, values, hops = users_of_hops(1000, seed=1)
    steps = np.asarray(head.steps(jnp.asarray(x), jnp.float32(calibration.price)))
    assert values[np.arange(1000), steps].mean() > 0.9 - 0.01
    assert (steps == hops).mean() > 0.95


def test_few_users_are_not_proof_enough_to_save_steps():
    def calibrated(number):
        rng = np.random.default_rng(3)
        x = rng.standard_normal((number, 2)).astype(np.float32)
        # Half of the users need the second step a little less than the others do.
        gain = np.where(x[:, 0] > 0, 0.02, 0.0) + 0.3 * rng.standard_normal(number)
        values = np.stack([np.zeros(number), gain], 1)
        return calibrate(x, -values, values, np.arange(number), 0.004)[1]

    few, many = calibrated(1_000), calibrated(200_000)
    assert few.best_fixed == many.best_fixed == 1
    assert few.mean_steps > 0.9 and many.mean_steps < 0.7


def test_nobody_gets_more_steps_than_the_best_fixed_number():
    x, losses, values, _ = users_of_hops(1000)
    # A third step leads away from what two have found.
    values[:, 3:] -= 0.5
    head, calibration = calibrate(x, losses, values, np.arange(1000), 0.001)
    assert calibration.best_fixed == 2 and calibration.price > 0 and calibration.mean_steps < 2
    steps = np.asarray(head.steps(jnp.asarray(x), jnp.float32(calibration.price)))
    assert steps.max() == 2 and steps.min() == 0


def test_a_user_does_not_tell_the_head_of_itself():
    # Features name the user and no more: only the user's other example could say what it needs.
    _, losses, values, _ = users_of_hops(60)
    users = np.repeat(np.arange(60), 2)
    x = np.eye(60, dtype=np.float32)[users]
    _, apart = calibrate(x, losses[users], values[users], np.arange(120), 0.001)
    _, together = calibrate(x, losses[users], values[users], users, 0.001)
    assert apart.mean_steps < 3 < together.mean_steps


def test_where_no_step_helps_none_is_taken():
    x, _, _, _ = users_of_hops(200)
    head, calibration = calibrate(x, np.ones((200, 5)), np.full((200, 5), 0.3), np.arange(200), 0.0)
    assert (calibration.best_fixed, calibration.mean_steps) == (0, 0.0)
    assert not np.asarray(head.steps(jnp.asarray(x), jnp.float32(calibration.price))).any()


def test_where_steps_cannot_be_told_all_take_the_best_fixed():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 3)).astype(np.float32)
    # The best K is 1 for most; who needs another, nothing tells.
    values = np.where(rng.random((300, 3)) < [0.3, 0.9, 0.3], 1.0, 0.0)
    head, calibration = calibrate(x, 1.0 - values, values, np.arange(len(x)), -0.05)
    assert (calibration.best_fixed, calibration.mean_steps) == (1, 1)
    steps = np.asarray(head.steps(jnp.asarray(x), jnp.float32(calibration.price)))
    assert (steps == 1).all()


def test_too_few_users_to_calibrate():
    with pytest.raises(ValueError, match="at least 5 validation users, found 3"):
        calibrate(*3 * [np.ones((3, 2))], np.arange(3), 0.0)


def test_blocks_score_as_every_user_alone_at_their_number_of_steps():
    batch = small_batches.ragged_batch()
    model, params, tables = small_batches.setup(small_batches.config(), batch)
    scorer = AdaptiveScorer(model, block=2)
    x, every = scorer.every_k(params, tables, batch)
    for k in range(4):
        np.testing.assert_allclose(
            scorer.fixed(params, tables, batch, steps=k), every[k], rtol=1e-5, atol=1e-5
        )
    rng = np.random.default_rng(0)
    head = Head(jnp.asarray(rng.standard_normal((x.shape[1], 4)), jnp.float32), jnp.zeros(4))
    logits, own = scorer.adaptive(params, tables, batch, head, jnp.float32(0.0))
    assert len(set(np.asarray(own))) > 1
    np.testing.assert_array_equal(own, head.steps(x, jnp.float32(0.0)))
    chosen = np.asarray(every)[np.asarray(own), np.arange(len(own))]
    np.testing.assert_allclose(logits, chosen, rtol=1e-5, atol=1e-5)


def test_ranking_losses_by_hand():
    losses = ranking_losses(jnp.log(jnp.array([[1.0, 3.0], [2.0, 2.0]])))
    np.testing.assert_allclose(losses, [np.log(4), np.log(2)], rtol=1e-6)
