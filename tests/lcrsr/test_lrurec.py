"""LRURec: its recurrence by hand and as a loop, how it starts, and the bias of an item."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcrsr.baselines import lrurec

LENGTH, WIDTH = 7, 4


def states_of(decay, inputs, valid=None, begins=None):
    inputs = jnp.asarray(inputs, jnp.complex64)
    valid = jnp.ones(inputs.shape[:2], bool) if valid is None else jnp.asarray(valid)
    begins = jnp.zeros(inputs.shape[:2], bool) if begins is None else jnp.asarray(begins)
    return lrurec.linear_recurrence(jnp.asarray(decay, jnp.complex64), inputs, valid, begins)


def test_the_recurrence_by_hand():
    inputs = np.array([[[1.0], [2.0], [4.0]]])
    np.testing.assert_allclose(states_of([0.5], inputs)[0, :, 0], [1.0, 2.5, 5.25])
    padded = states_of([0.5], inputs, [[False, True, True]])
    np.testing.assert_allclose(padded[0, 1:, 0], [2.0, 5.0])
    # A hole leaves the state as it is.
    hole = states_of([0.5], inputs, [[True, False, True]])
    np.testing.assert_allclose(hole[0, :, 0], [1.0, 1.0, 4.5])
    again = states_of([0.5], inputs, begins=[[True, False, True]])
    np.testing.assert_allclose(again[0, :, 0], [1.0, 2.5, 4.0])


def test_the_scan_is_a_loop():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((3, LENGTH, 5)) + 1j * rng.standard_normal((3, LENGTH, 5))
    decay = 0.95 * np.exp(1j * rng.uniform(0, 2 * np.pi, 5))
    valid, begins = rng.random((2, 3, LENGTH)) < [[[0.8]], [[0.2]]]
    state, expected = np.zeros((3, 5), complex), []
    for place in range(LENGTH):
        state = np.where(begins[:, place, None], 0.0, state)
        after = decay * state + inputs[:, place]
        # A row that is no event and begins a window has forgotten what was before.
        state = np.where(valid[:, place, None], after, state)
        expected.append(state)
    scanned = states_of(decay, inputs, valid, begins)
    np.testing.assert_allclose(scanned, np.stack(expected, 1), atol=1e-5)


def test_two_halves_with_a_carried_state_are_one_pass():
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((2, 8, 3)).astype(np.complex64)
    decay = np.array([0.9, 0.5j, -0.8], np.complex64)
    whole = states_of(decay, inputs)
    first = states_of(decay, inputs[:, :4])
    second = inputs[:, 4:].copy()
    second[:, 0] += decay * np.asarray(first)[:, -1]
    np.testing.assert_allclose(states_of(decay, second), whole[:, 4:], atol=1e-6)


@pytest.fixture(scope="module")
def run():
    settings = lrurec.Settings(width=WIDTH, layers=2, dropout=0.0, init_scale=0.5, loss="bce")
    ranker = lrurec.ranker(settings)
    rows = jax.random.normal(jax.random.key(0), (3, LENGTH, WIDTH + 1))
    batch = {"rec_items": np.array([[1] * 7, [1] * 3 + [0] * 4, [0] * 7], np.int32)}
    params = ranker.init(jax.random.key(1), batch, {"rec_items": rows})

    @jax.jit
    def users(items, rows, params=params):
        return ranker.represent(params, {"rec_items": items}, {"rec_items": rows})

    return users, ranker, params, batch["rec_items"], rows


def test_states_start_on_a_ring_and_inputs_at_its_scale(run):
    _, _, params, _, _ = run
    for block in ("Recurrence_0", "Recurrence_1"):
        nu, theta, gamma = np.exp(np.asarray(params[block]["ring"], np.float64))
        radius = np.exp(-nu)
        assert radius.shape == (2 * WIDTH,)
        assert 0.8 <= radius.min() < 0.93 < radius.max() <= 0.99
        assert theta.min() > 0 and theta.max() <= 2 * np.pi
        np.testing.assert_allclose(gamma, np.sqrt(1 - radius**2), rtol=1e-5)


def test_padding_on_either_side_changes_nothing(run):
    users, _, _, items, rows = run
    states = users(items, rows)
    assert np.isfinite(states).all()
    other = jnp.where((items != 0)[..., None], rows, 9.0)
    np.testing.assert_allclose(users(items, other), states, atol=1e-6)
    moved = np.roll(items[1:2], 2, 1), jnp.roll(rows[1:2], 2, 1)
    np.testing.assert_allclose(users(*moved), states[1:2], atol=1e-6)
    assert np.abs(users(items, rows[:, ::-1]) - states)[0].max() > 1e-3  # order counts


def test_the_last_number_of_an_items_row_is_its_bias(run):
    users, ranker, params, items, rows = run
    states = users(items, rows)
    # The network does not read it.
    np.testing.assert_array_equal(users(items, rows.at[..., -1].set(3.0)), states)
    candidates = jax.random.normal(jax.random.key(3), (3, 2, WIDTH + 1))
    scores = ranker.score(params, states, {"candidates": candidates})
    higher = ranker.score(params, states, {"candidates": candidates.at[:, 0, -1].add(2.0)})
    np.testing.assert_allclose(higher - scores, [[2.0, 0.0]] * 3, atol=1e-5)
    assert ranker.width == WIDTH + 1
