"""FMLP-Rec: its filters by hand, and where a history lies among the positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcrsr.baselines import fmlp_rec

LENGTH, WIDTH = 4, 6


def settings(**changes):
    values = {"width": WIDTH, "layers": 2, "dropout": 0.0, "init_scale": 0.5, "loss": "bce"}
    return fmlp_rec.Settings(**(values | {"rec_length": LENGTH} | changes))


def test_filters_by_hand():
    x = jnp.array([[1.0, 2.0, 3.0, 4.0]])[..., None]
    ones = jnp.ones((3, 1), jnp.complex64)
    np.testing.assert_allclose(fmlp_rec.filtered(x, ones), x, atol=1e-6)
    mean = ones.at[1:].set(0.0)
    np.testing.assert_allclose(fmlp_rec.filtered(x, mean), np.full((1, 4, 1), 2.5), atol=1e-6)
    shift = jnp.fft.rfft(jnp.array([0.0, 1.0, 0.0, 0.0]))[:, None]
    rolled = fmlp_rec.filtered(x, shift)[0, :, 0]
    np.testing.assert_allclose(rolled, [4.0, 1.0, 2.0, 3.0], atol=1e-6)


def test_a_filter_is_a_circular_convolution_of_each_channel():
    rng = np.random.default_rng(0)
    for length in (5, 6):
        x, kernel = rng.standard_normal((2, length, 3))
        response = jnp.asarray(np.fft.rfft(kernel, axis=0), jnp.complex64)
        expected = [
            sum(kernel[lag] * x[(place - lag) % length] for lag in range(length))
            for place in range(length)
        ]
        ours = fmlp_rec.filtered(jnp.asarray(x, jnp.float32)[None], response)[0]
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_events_end_at_the_last_position():
    rows = jnp.arange(1.0, 5.0)[None, :, None]
    valid = jnp.array([[True, False, True, False]])
    moved, where = fmlp_rec.latest_last(rows, valid)
    assert moved[0, 2:, 0].tolist() == [1.0, 3.0] and where[0].tolist() == [False] * 2 + [True] * 2


@pytest.fixture(scope="module")
def network():
    module = fmlp_rec.Network(settings())
    rows = jax.random.normal(jax.random.key(0), (3, LENGTH, WIDTH))
    valid = jnp.arange(LENGTH) < jnp.array([[4], [2], [0]])
    params = module.init(jax.random.key(1), rows, valid, deterministic=True)["params"]
    # Filters of a size that is seen.
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(2), p.shape), params)

    @jax.jit
    def users(rows, valid):
        return module.apply({"params": params}, rows, valid, deterministic=True)

    return users, rows, valid


def test_padding_on_either_side_and_its_rows_change_nothing(network):
    users, rows, valid = network
    states = users(rows, valid)
    assert np.isfinite(states).all()
    # Rows of padding.
    other = jnp.where(valid[..., None], rows, 7.0)
    np.testing.assert_allclose(users(other, valid), states, atol=1e-6)
    # Padding before the events, and less of it than the filters are long.
    left = jnp.roll(rows[1:2], 2, 1), jnp.roll(valid[1:2], 2, 1)
    np.testing.assert_allclose(users(*left), states[1:2], atol=1e-6)
    np.testing.assert_allclose(users(rows[1:2, :3], valid[1:2, :3]), states[1:2], atol=1e-6)


def test_every_event_and_their_order_count(network):
    users, rows, valid = network
    states = users(rows, valid)
    for place in range(LENGTH):
        moved = users(rows.at[0, place].multiply(-1.0), valid)
        assert np.abs(moved - states)[0].max() > 1e-3
    swapped = users(rows[:, jnp.array([1, 0, 2, 3])], valid)
    assert np.abs(swapped - states)[:2].max(1).min() > 1e-3


def test_windows_are_refused(network):
    assert not fmlp_rec.ranker(settings()).trains_on_windows
    _, rows, valid = network
    with pytest.raises(ValueError, match="found windows"):
        fmlp_rec.Network(settings()).init(
            jax.random.key(0), rows, valid, object(), deterministic=True
        )
