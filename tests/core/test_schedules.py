"""Checks learning rates and updates by optax against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from core.schedules import falling, rate_at


def formula(step, max_steps, warmup):
    rising = max(1.0, warmup * max_steps)
    if step + 1 < rising:
        return (step + 1) / rising
    progress = min(1.0, (step + 1 - rising) / max(1.0, max_steps - rising))
    return 0.5 * (1.0 + np.cos(np.pi * progress))


@pytest.mark.parametrize(
    "max_steps, warmup", [(1, 0.0), (8, 0.25), (100, 0.0), (777, 0.013), (40, 1.0)]
)
def test_the_rate_is_a_rise_and_a_cosine(max_steps, warmup):
    steps = np.arange(max_steps + 2)
    rates = jax.jit(rate_at, static_argnums=(1, 2))(jnp.asarray(steps), max_steps, warmup)
    expected = [formula(step, max_steps, warmup) for step in steps.tolist()]
    # To the last digit of float32 below 1.
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1.2e-7)


def test_an_update_is_subtracted_at_the_rate_bit_for_bit():
    rng = np.random.default_rng(0)
    params, updates = rng.normal(size=(2, 100)).astype(np.float32)
    updated = jax.jit(lambda p, u, rate: optax.apply_updates(p, optax.tree.scale(-rate, u)))(
        params, updates, jnp.float32(0.25)
    )
    # A quarter of a float is exact, so that the sum is the only rounding, fused or not.
    np.testing.assert_array_equal(updated, params - np.float32(0.25) * updates)


def test_the_falling_rate_ends_at_a_tenth_and_stays_there():
    rates = falling(jnp.arange(0, 21, 5), 10)
    np.testing.assert_allclose(rates, [1.0, 0.55, 0.1, 0.1, 0.1], rtol=1e-6)
