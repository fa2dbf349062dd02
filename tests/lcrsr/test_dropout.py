"""Dropout keeps the share it says, scaled, and its places know nothing of each other."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.partitioning import Partition, make_mesh, random_bits_impl
from lcrsr.history_encoder import Dropout


@pytest.mark.parametrize("width", [64, 7])
def test_share_scale_and_independence(width):
    dropout = Dropout(jax.random.key(0, impl="rbg"), 0.1)
    kept = np.asarray(dropout(jnp.ones((4000, width))))
    np.testing.assert_allclose(kept[kept > 0], 1 / 0.9, rtol=1e-6)
    dropped = kept == 0
    deviation = (0.1 * 0.9 / dropped.size) ** 0.5
    assert abs(dropped.mean() - 0.1) < 5 * deviation
    # Two elements that share a generated word drop together as often as chance has it.
    both = (dropped[:, 0:6:2] & dropped[:, 1:6:2]).mean()
    assert abs(both - 0.01) < 5 * (0.01 * 0.99 / (3 * 4000)) ** 0.5
    other = np.asarray(dropout.at(1)(jnp.ones((4000, width)))) == 0
    assert abs((dropped & other).mean() - 0.01) < 5 * (0.01 * 0.99 / dropped.size) ** 0.5


def test_without_a_key_or_a_rate_nothing_is_dropped():
    x = jnp.arange(6.0).reshape(2, 3)
    assert Dropout(None, 0.5)(x) is x
    assert Dropout(jax.random.key(0), 0.0)(x) is x


def test_several_accelerators_draw_bits_that_their_partitioner_cuts():
    assert random_bits_impl(None) == "rbg"
    assert random_bits_impl(Partition(make_mesh(4, 2), ())) == "rbg"  # a CPU's does cut them
    chips = types.SimpleNamespace(devices=np.array([[types.SimpleNamespace(platform="tpu")] * 2]))
    assert random_bits_impl(Partition(chips, ())) == "threefry2x32"
