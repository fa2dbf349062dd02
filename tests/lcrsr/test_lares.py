"""LARES: its refinement, steps and contrasts by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcrsr.baselines import lares

LENGTH, WIDTH = 4, 8


def settings(**changes):
    return lares.Settings(
        **{
            "width": WIDTH,
            "ffn_width": 6,
            "layers": 1,
            "core_layers": 1,
            "heads": 2,
            "dropout": 0.0,
            "init_scale": 0.5,
            "loss": "full_cross_entropy",
            "rec_length": LENGTH,
            "mean_steps": 2,
            "start_scale": 3.0,
            "target_weight": 0.1,
            "step_weight": 0.5,
            "temperature": 1.0,
        }
        | changes
    )


def test_every_step_halves_the_way_to_the_encoding_where_the_core_does_nothing():
    start, encoded = jnp.full((1, 1, 1), 8.0), jnp.zeros((1, 1, 1))
    run = jax.jit(
        lambda steps, earlier: lares.refined(
            lambda mean, number: mean, start, encoded, steps, earlier, 6
        )
    )
    last, earlier = run(3, 1)
    assert (last.item(), earlier.item()) == (1.0, 4.0)
    # The last step may be the earlier one; without steps the start is left.
    assert [state.item() for state in run(2, 2)] == [2.0, 2.0]
    assert run(0, 0)[0].item() == 8.0
    away = lares.refined(lambda mean, number: mean, start, encoded + 4, 3, 1, 6)[0]
    assert away.item() == 4 + (8 - 4) / 2**3


def test_steps_are_drawn_about_their_mean():
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: lares.steps_drawn(key, 4)))(keys))
    assert drawn.min() == 1 and drawn.max() == 12
    # The rate's mean is 4, one more step is certain, and 12 cuts a little off.
    assert 4.7 < drawn.mean() < 5.0


def test_the_partner_is_the_next_history_of_the_same_target():
    targets = jnp.array([7, 8, 7, 9, 7, 8])
    counts = jnp.array([True, True, True, True, True, False])
    partners = lares.next_of_target(targets, counts)
    assert partners[:5].tolist() == [2, 1, 4, 3, 0]


def test_the_contrast_by_hand():
    eye = jnp.eye(3, 2)
    # The third is no negative and does not count.
    others = jnp.array([[False, True, False], [True, False, False], [True, True, False]])
    counts = jnp.array([True, True, False])
    value = lares.contrasted(eye, 2 * eye, others, counts, 1.0)
    assert float(value) == pytest.approx(np.log(1 + np.exp(-2)), abs=1e-6)
    # Both directions: rows have products (2, 0) and (1, 0), columns (2, 1) and (0, 0).
    first, second = jnp.array([[2.0, 0.0], [1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    value = lares.contrasted(first, second, others[:2, :2], counts[:2], 1.0)
    rows = [np.log(np.exp(2) + 1) - 2, np.log(np.exp(1) + 1)]
    columns = [np.log(np.exp(2) + np.exp(1)) - 2, np.log(2)]
    assert float(value) == pytest.approx((sum(rows) + sum(columns)) / 4, abs=1e-6)


@pytest.fixture(scope="module")
def run():
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.standard_normal((9, WIDTH)), jnp.float32).at[0].set(0.0)
    batch = {
        "user": np.arange(1, 5, dtype=np.int32),
        "rec_items": np.array([[1, 2, 3, 4], [2, 4, 0, 0], [8, 0, 0, 0], [0, 0, 0, 0]], np.int32),
        "candidates": np.array([[6, 1], [6, 1], [7, 1], [3, 1]], np.int32),
        "mask": np.array([1.0, 1.0, 1.0, 0.0], np.float32),
    }
    rows = {"rec_items": table[batch["rec_items"]]}
    params = lares.ranker(settings()).init(jax.random.key(0), batch, rows)
    return batch, rows, {"item": table}, params


@functools.partial(jax.jit, static_argnums=0)
def represented(given, params, batch, rows):
    return lares.ranker(given).represent(params, batch, rows)


def test_scores_do_not_move_from_call_to_call_and_depend_on_the_steps(run):
    batch, rows, _, params = run
    states = represented(settings(), params, batch, rows)
    np.testing.assert_array_equal(represented(settings(), params, batch, rows), states)
    assert np.isfinite(states).all()
    further = represented(settings(mean_steps=5), params, batch, rows)
    assert np.abs(further - states).max() > 1e-3


@pytest.mark.parametrize("weights", [(0.0, 0.0), (2.0, 0.0), (0.0, 2.0)])
def test_the_contrasts_are_weighed(run, weights):
    batch, rows, tables, params = run
    target_weight, step_weight = weights
    ranker = lares.ranker(settings(target_weight=target_weight, step_weight=step_weight))
    loss = jax.jit(ranker.loss)
    total, stats = loss(params, batch, rows, tables, jax.random.key(0))
    expected = stats["full_cross_entropy"]
    if any(weights):
        expected += target_weight * stats["target_contrast"] + step_weight * stats["step_contrast"]
        # Where there is one step, none is earlier: of 20 updates some have one, some have more.
        each = [loss(params, batch, rows, tables, jax.random.key(n))[1] for n in range(20)]
        assert all(float(stats["target_contrast"]) > 0 for stats in each)
        assert 0 < sum(float(stats["step_contrast"]) > 0 for stats in each) < 20
    assert float(total) == pytest.approx(float(expected), rel=1e-6)


def test_training_starts_from_noise(run):
    batch, rows, tables, params = run
    losses = []
    for scale in (0.0, 3.0):
        plain = settings(start_scale=scale, target_weight=0.0, step_weight=0.0)
        loss = jax.jit(lares.ranker(plain).loss)
        losses.append(float(loss(params, batch, rows, tables, jax.random.key(4))[0]))
    assert abs(losses[0] - losses[1]) > 1e-3


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="mean_steps above 0"):
        settings(mean_steps=0)
    with pytest.raises(ValueError, match="width divisible by heads"):
        settings(heads=3)
