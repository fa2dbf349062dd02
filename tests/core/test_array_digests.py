"""Digests of arrays: equal on every mesh, and another where any bit is."""

import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from core import array_digests


def values(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.float64, jnp.bfloat16, np.bool_])
def test_every_flipped_bit_changes_the_digest(dtype):
    array = values((3, 2, 5), dtype)
    seen = {array_digests.digest(array)}
    content = array.tobytes()
    for place, bit in itertools.product(range(len(content)), range(8)):
        if dtype == np.bool_ and bit:
            continue
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        seen.add(array_digests.digest(np.frombuffer(bytes(changed), array.dtype).reshape(3, 2, 5)))
    assert len(seen) == 1 + len(content) * (1 if dtype == np.bool_ else 8)


def test_moved_and_negated_values_change_the_digest():
    array = values((6, 4))
    others = [-array, array[::-1], array[:, ::-1], array.T.reshape(6, 4), np.roll(array, 1)]
    assert len({array_digests.digest(one) for one in [array, *others]}) == 6


@pytest.mark.parametrize("shape", [(70_000,), (200_000, 1), (3, 70_000), (90, 1_000), (5, 30, 600)])
def test_parts_of_any_cut_add_up(shape):
    array = values(shape)
    whole = array_digests.digest(array)
    for axis, size in enumerate(shape):
        cuts = sorted({0, 1, size // 3, size // 2 + 1, size})
        total = 0
        for start, stop in itertools.pairwise(cuts):
            part = array[(slice(None),) * axis + (slice(start, stop),)]
            starts = [start if number == axis else 0 for number in range(array.ndim)]
            total += array_digests.digest(part, starts)
        assert total % 2**64 == whole


def test_zeros_that_fill_up_rows_count_nothing():
    array = values((5, 3))
    assert array_digests.digest(np.pad(array, ((0, 3), (0, 0)))) == array_digests.digest(array)
    assert array_digests.digest(np.zeros((0, 4))) == 0


def test_the_mesh_does_not_matter():
    devices = np.array(jax.devices())
    array = values((8, 12))
    for shape, spec in (
        ((4,), PartitionSpec("a")),
        ((4,), PartitionSpec(None, "a")),
        ((2, 2), PartitionSpec("a", "b")),
        ((2, 2), PartitionSpec("b")),
        ((4,), PartitionSpec()),
    ):
        mesh = jax.sharding.Mesh(devices[:4].reshape(shape), ("a", "b")[: len(shape)])
        cut = jax.device_put(array, NamedSharding(mesh, spec))
        assert array_digests.first_copies(cut) == array_digests.digest(array)
        parts = array_digests.parts(cut)
        assert array_digests.total(iter(parts.values())) == array_digests.digest(array)


def test_keys_and_host_numbers_have_digests():
    assert array_digests.first_copies(jax.random.key(1)) != array_digests.first_copies(
        jax.random.key(2)
    )
    assert array_digests.first_copies(np.int64(3)) == array_digests.digest(np.array(3))
    assert array_digests.parts(np.zeros((2, 3)))["0:2,0:3"] == 0


def test_a_system_that_knows_no_affinity_digests_alike(monkeypatch):
    array = values((5, 7))
    expected = array_digests.digest(array)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert array_digests.digest(array) == expected
