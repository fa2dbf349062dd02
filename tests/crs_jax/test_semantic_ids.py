"""Semantic ids: unique, every code used, stable under a seed, extended without renumbering."""

import contextlib

import numpy as np
import pytest
from damage import flipped_bits

from core import checksums
from core.errors import UserError
from crs_jax import semantic_ids


def vectors(count=300, seed=0):
    """Clusters of clusters; the last third repeats the first, so that prefixes are shared."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(6, 8))[rng.integers(0, 6, count)] * 5
    points += rng.normal(size=(4, 8))[rng.integers(0, 4, count)] + 0.1 * rng.normal(size=(count, 8))
    points[2 * count // 3 :] = points[: count - 2 * count // 3]
    return points


def test_ids_are_unique_and_every_code_of_every_level_is_used():
    ids = semantic_ids.fit(vectors(), (16, 16, 16), last_codes=0, seed=0)
    assert ids.codes.shape == (300, 4) and ids.codes.dtype == np.int32
    assert len(np.unique(ids.codes, axis=0)) == 300
    for level, size in enumerate(ids.levels):
        assert set(ids.codes[:, level]) == set(range(size)), level
    assert ids.levels[3] >= 2  # equal vectors need it
    # The first of equal items is number 0: their ids differ in the last code alone.
    np.testing.assert_array_equal(ids.codes[:100, :3], ids.codes[200:, :3])
    assert (ids.codes[:100, 3] < ids.codes[200:, 3]).all()


def test_codes_are_the_nearest_of_what_each_level_leaves():
    points = vectors()
    ids = semantic_ids.fit(points, (16, 16, 16), last_codes=0, seed=0)
    rest = points
    errors = []
    for level, book in enumerate(ids.codebooks):
        distances = np.square(rest[:, None] - book).sum(-1)
        chosen = ids.codes[:, level]
        # Against the plain double loop of Eq. 1; equal distances leave either.
        np.testing.assert_allclose(
            distances[np.arange(300), chosen], distances.min(1), rtol=1e-6, atol=1e-9
        )
        rest = rest - book[chosen]
        errors.append(np.square(rest).sum(1).mean())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_an_empty_code_takes_a_point_of_its_own():
    # Two far clusters and two codes more than k-means started well would fill by itself.
    points = np.concatenate([np.zeros((50, 2)), np.full((50, 2), 9.0), [[9.0, 9.1], [0.1, 0.0]]])
    centres, codes = semantic_ids.fit_level(points, 4, seed=0, level=0)
    assert sorted(np.bincount(codes)) == [1, 1, 50, 50]
    assert len(centres) == 4


def test_a_seed_gives_the_same_ids_and_another_gives_others():
    one, again, other = (
        semantic_ids.fit(vectors(), (16, 8, 8), last_codes=0, seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.codes, again.codes)
    assert one.hash == again.hash != other.hash


def listed(folder, items, codes):
    semantic_ids.write_list(str(folder), items, codes)
    return semantic_ids.read_list(str(folder))


def test_new_items_join_without_renumbering(tmp_path):
    points = vectors()
    ids = semantic_ids.fit(points, (16, 8, 8), last_codes=20, seed=0)
    items = [f"old {i}" for i in range(300)]
    earlier = listed(tmp_path, items, ids.codes)
    more = np.concatenate([points[:3], points[:3], vectors(5, seed=9)])
    names = [f"new {i}" for i in range(11)] + items
    # In another space, and before the old ones.
    turned = np.concatenate([more, points]) @ np.linalg.qr(vectors(8))[0] + 2.0
    longer = semantic_ids.extend(earlier, names, turned, (16, 8, 8), last_codes=20)
    np.testing.assert_array_equal(longer.codes[11:], ids.codes)
    assert len(np.unique(longer.codes, axis=0)) == 311 and longer.levels == ids.levels
    # An item equal to an old one shares its codes but for the last.
    np.testing.assert_array_equal(longer.codes[:3, :3], ids.codes[:3, :3])
    assert (longer.codes[3:6, 3] > longer.codes[:3, 3]).all()
    assert (longer.codes[:3, 3] > ids.codes[200:203, 3]).all()


def test_an_id_that_has_left_is_not_given_again(tmp_path):
    codes = np.array([[0, 0], [0, 1], [1, 0], [2, 0]], np.int32)
    earlier = listed(tmp_path, ["a", "b", "c", "d"], codes)
    # b and d have left: 0.1 stays theirs, and nothing tells where code 2 lies.
    points = np.array([[0.0], [10.0], [0.1], [30.0]])
    ids = semantic_ids.extend(earlier, ["a", "c", "e", "f"], points, (3,), last_codes=0)
    np.testing.assert_array_equal(ids.codes, [[0, 0], [1, 0], [0, 2], [1, 1]])
    assert ids.levels == (3, 3)


def test_ids_that_cannot_be_extended(tmp_path):
    earlier = listed(tmp_path, ["a", "b"], np.array([[0, 0], [3, 0]], np.int32))
    points = np.eye(2)
    with pytest.raises(UserError, match=r"items of this log in .*jsonl, found none"):
        semantic_ids.extend(earlier, ["x", "y"], points, (4,), last_codes=0)
    for sizes in ((3,), (4, 4)):
        with pytest.raises(UserError, match=r"codes=\(.*\) in .*, found codes up to \(4,\)"):
            semantic_ids.extend(earlier, ["a", "y"], points, sizes, last_codes=0)
    with pytest.raises(UserError, match="at most 1 items of the same codes, found 2"):
        semantic_ids.extend(earlier, ["a", "y"], np.zeros((2, 2)), (4,), last_codes=1)
    for line in (
        "{",
        '{"item": "c"}',
        '{"item": "a", "codes": [1, 2]}',
        "[]",
        "3",
        '{"item": "c", "codes": [1]}',
        '{"item": "c", "codes": [1, -1]}',
    ):
        semantic_ids.write_list(str(tmp_path), ["a", "b"], earlier.codes)
        listing = tmp_path / semantic_ids.LIST
        checksums.save(str(listing), listing.read_bytes() + line.encode() + b"\n")
        with pytest.raises(UserError, match="as many codes as the others in line 3 of"):
            semantic_ids.read_list(str(tmp_path))
    checksums.save(str(listing), b'{"item": "\xff", "codes": [3000000000]}\n')
    with pytest.raises(UserError, match="in line 1 of"):
        semantic_ids.read_list(str(tmp_path))
    checksums.save(str(listing), b"")
    with pytest.raises(UserError, match=r"expected ids in .*, found none"):
        semantic_ids.read_list(str(tmp_path))
    with pytest.raises(UserError, match="found no such file; pass the workdir of a run of crs"):
        semantic_ids.read_list(str(tmp_path / "elsewhere"))


def test_a_flipped_bit_of_saved_ids_is_found(tmp_path):
    ids = semantic_ids.fit(
        np.random.default_rng(0).normal(size=(40, 3)), (4, 4), last_codes=0, seed=0
    )
    ids.save(str(tmp_path))
    semantic_ids.write_list(str(tmp_path), [f"i{n}" for n in range(40)], ids.codes)
    assert semantic_ids.load(str(tmp_path)).hash == ids.hash
    for what in flipped_bits(tmp_path / semantic_ids.FILE, 60):
        # Of a ZIP archive's own fields some are not read: then the ids are those that were saved.
        with contextlib.suppress(UserError):
            loaded = semantic_ids.load(str(tmp_path))
            assert loaded.hash == ids.hash, what
            np.testing.assert_array_equal(loaded.codebooks, ids.codebooks, what)
    for name in (semantic_ids.LIST, semantic_ids.LIST + ".checksum"):
        for what in flipped_bits(tmp_path / name):
            with pytest.raises(UserError):
                semantic_ids.read_list(str(tmp_path))
                pytest.fail(what)


def test_what_cannot_be_told_apart_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least 16 different vectors for the codes of level 1"):
        semantic_ids.fit(np.ones((40, 3)), (16,), last_codes=0, seed=0)
    # Different bits, and nearer to each other than a distance can tell.
    near = np.random.default_rng(0).normal(size=(40, 8))
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    with pytest.raises(UserError, match="found fewer up to rounding"):
        semantic_ids.fit(np.concatenate([near, near + 1e-12]), (60,), last_codes=0, seed=0)
    points = np.concatenate([np.eye(4), np.eye(4), np.eye(4)])
    with pytest.raises(UserError, match="at most 2 items of the same codes, found 3"):
        semantic_ids.fit(points, (4,), last_codes=2, seed=0)
    with pytest.raises(UserError, match="expected semantic ids at"):
        semantic_ids.load(tmp_path)


def test_saved_ids_are_read_or_refused_in_one_line(tmp_path):
    ids = semantic_ids.fit(vectors(), (4, 4), last_codes=0, seed=0)
    ids.save(str(tmp_path))
    assert semantic_ids.load(str(tmp_path)).hash == ids.hash
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    with np.load(file) as arrays:
        values = dict(arrays)
    broken = [{k: v for k, v in values.items() if k != name} for name in values]
    broken += [values | {"codes": values["codes"] + 9}, values | {"codes": values["codes"][0]}]
    broken += [values | {"codes": values["codes"] * 1.0}, values | {"codebook_0": np.zeros(3)}]
    broken += [values | {"codes": -values["codes"]}, values | {"last_codes": np.zeros(2)}]
    for arrays in broken:
        np.savez(file, **arrays)
        with pytest.raises(UserError, match=r"expected semantic ids at .*, found .*; train again"):
            semantic_ids.load(str(tmp_path))
    for content in (b"", whole[:-50], b"words"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"expected semantic ids at .*, found .*; train again"):
            semantic_ids.load(str(tmp_path))
