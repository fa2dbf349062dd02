"""Collisions, their resolution and the identifier table, by hand."""

import json

import numpy as np
import pytest
from damage import flipped_bits
from numpy_quantizer import sinkhorn_plan

from core import checksums
from core.errors import UserError
from gensar_jax import identifiers
from gensar_jax.identifiers import IdentifierTable, load_table, resolve, save_table


def table(semantic=((0, 1), (0, 2), (1, 0)), collaborative=((0, 0), (0, 1), (1, 3)), **changes):
    codes = {"semantic": np.array(semantic), "collaborative": np.array(collaborative)}
    values = {"codes": codes, "shared_levels": 1, "num_codes": 4, "data_hash": "d"}
    return IdentifierTable(**(values | {"training_split": "by_user-0"} | changes))


def test_collision_rate_by_hand():
    # Five items, three identifiers: 1 - 3 / 5.
    codes = np.array([[0, 1], [0, 1], [0, 1], [1, 0], [2, 2]])
    assert identifiers.collision_rate(codes) == pytest.approx(0.4)


def test_the_collision_rate_is_not_the_share_of_items_that_collide():
    # 0, 0 and 1, 1 collide, 2 does not; three identifiers for five items.
    codes = np.array([[0], [0], [1], [1], [2]])
    assert identifiers.collision_rate(codes) == pytest.approx(0.4)
    assert identifiers.colliding_items(codes) == pytest.approx(0.8)
    assert identifiers.colliding_items(np.arange(3)[:, None]) == 0.0


def test_balanced_codes_follow_the_definition():
    distances = np.random.default_rng(0).random((12, 5))
    found = identifiers.balanced_codes(distances, 0.05, 50)
    assert found.tolist() == sinkhorn_plan(distances, 0.05, 50).argmax(1).tolist()


def test_sinkhorn_separates_items_with_other_residuals():
    # Both are nearest to 0; balance sends one of them elsewhere within the rounds.
    codebook = np.array([[0.0], [5.0], [-5.0]], np.float32)
    codes = np.array([[7, 0], [7, 0], [3, 0]], np.int32)
    residuals = np.array([[-0.4], [0.5], [0.0]], np.float32)
    resolved = resolve(codes, residuals, codebook[None], epsilon=0.003, iterations=50)
    assert len({tuple(row) for row in resolved.codes}) == 3
    assert resolved.spares == 0 and 1 <= resolved.rounds <= 20
    # Only those that collided move, and only in the last code.
    assert resolved.codes[2].tolist() == [3, 0] and (resolved.codes[:2, 0] == 7).all()
    assert codes.tolist() == [[7, 0], [7, 0], [3, 0]]


@pytest.mark.parametrize("first", [-0.3, 0.2, 0.45])
@pytest.mark.parametrize("other", [-0.2, 0.1, 0.4])
def test_one_round_gives_two_items_of_one_identifier_the_two_last_codes(first, other):
    # LC-Rec's re-assignment: both have the nearest code 0; balance wants one item a code, and the
    # plan that costs least gives code 1, at 1, to the item that is nearer to it.
    codebook = np.array([[0.0], [1.0]], np.float32)
    codes = np.array([[3, 0], [3, 0], [4, 0]], np.int32)
    residuals = np.array([[first], [other], [0.0]], np.float32)
    resolved = resolve(codes, residuals, codebook[None], epsilon=0.003, iterations=50, rounds=1)
    nearer = int(other > first)
    assert resolved.codes[nearer].tolist() == [3, 1]
    assert resolved.codes[1 - nearer].tolist() == [3, 0]
    # Sinkhorn did it alone, and what did not collide stays.
    assert (resolved.rounds, resolved.moved, resolved.spares) == (1, 1, 0)
    assert resolved.codes[2].tolist() == [4, 0]


def test_any_colliding_items_end_apart_below_their_own_prefix():
    rng = np.random.default_rng(0)
    for _ in range(20):
        codes = np.column_stack([rng.integers(0, 5, 12), rng.integers(0, 4, 12)]).astype(np.int32)
        residuals = rng.normal(size=(12, 2)).astype(np.float32)
        codebook = rng.normal(size=(1, 12, 2)).astype(np.float32)
        resolved = resolve(codes, residuals, codebook, epsilon=0.003, iterations=50)
        assert len(np.unique(resolved.codes, axis=0)) == 12
        assert (resolved.codes[:, 0] == codes[:, 0]).all()
        for prefix in range(5):
            own = codes[:, 0] == prefix
            if len(np.unique(codes[own, 1])) == own.sum():
                assert (resolved.codes[own] == codes[own]).all()


def test_what_sinkhorn_cannot_tell_apart_takes_the_nearest_free_code():
    # Three equal items at .1: the first keeps code 0; -1 is nearer than 2, but a sibling has it.
    codebook = np.array([[0.0], [-1.0], [2.0], [9.0]], np.float32)
    codes = np.array([[5, 0], [5, 0], [5, 0], [5, 1], [6, 2]], np.int32)
    residuals = np.array([[0.1], [0.1], [0.1], [-1.0], [2.0]], np.float32)
    resolved = resolve(codes, residuals, codebook[None], epsilon=0.0, iterations=50)
    assert resolved.codes.tolist() == [[5, 0], [5, 2], [5, 3], [5, 1], [6, 2]]
    assert (resolved.rounds, resolved.moved, resolved.spares) == (0, 2, 2)
    balanced = resolve(codes, residuals, codebook[None], epsilon=0.003, iterations=50)
    assert identifiers.collision_rate(balanced.codes) == 0.0
    assert balanced.rounds == 20 and balanced.spares == 2
    assert balanced.codes[3:].tolist() == [[5, 1], [6, 2]]


def test_where_all_last_codes_are_taken_the_own_code_before_it_gives_way():
    # Five equal items, three last codes; own code 1 is nearer to 0 than 2 and has one place left.
    codebooks = np.array([[[0.0], [1.0], [5.0]], [[0.0], [3.0], [9.0]]], np.float32)
    codes = np.array([[4, 0, 0]] * 5 + [[4, 1, 0], [4, 1, 2]], np.int32)
    residuals = np.zeros((7, 1), np.float32)
    resolved = resolve(codes, residuals, codebooks, epsilon=0.0, iterations=1)
    assert resolved.codes[:5].tolist() == [[4, 0, 0], [4, 0, 1], [4, 0, 2], [4, 1, 1], [4, 2, 0]]
    assert resolved.codes[5:].tolist() == codes[5:].tolist() and resolved.spares == 4


def test_more_items_than_codes_below_one_prefix_is_an_error():
    codes = np.zeros((3, 2), np.int32)
    with pytest.raises(UserError, match=r"at most 2 items .* found more"):
        resolve(codes, np.zeros((3, 1)), np.zeros((1, 2, 1)), epsilon=0.0, iterations=1)
    codes = np.zeros((5, 3), np.int32)
    with pytest.raises(UserError, match=r"at most 4 items .* found more"):
        resolve(codes, np.zeros((5, 1)), np.zeros((2, 2, 1)), epsilon=0.0, iterations=1)


def test_a_table_survives_a_save(tmp_path):
    save_table(str(tmp_path), table(), {"seed": 3})
    loaded = load_table(str(tmp_path), data_hash="d")
    assert loaded.hash == table().hash
    for source, codes in table().codes.items():
        assert loaded.codes[source].tolist() == codes.tolist()
    meta = json.loads((tmp_path / "identifiers.json").read_text())
    assert (meta["items"], meta["shared_levels"], meta["specific_levels"]) == (3, 1, 1)
    assert (meta["codes"], meta["seed"], meta["hash"]) == (4, 3, table().hash)


def test_the_hash_covers_codes_levels_and_data():
    hashes = {
        table().hash,
        table(semantic=((0, 2), (0, 1), (1, 0))).hash,
        table(shared_levels=0).hash,
        table(num_codes=5).hash,
        table(data_hash="e").hash,
    }
    assert len(hashes) == 5


def seal(folder, meta):
    """Writes the checksums that the files have now."""
    files = checksums.describe(str(folder), ["identifiers.npz"])
    meta = {name: value for name, value in meta.items() if name != checksums.CHECKSUM}
    checksums.write_sealed(str(folder / "identifiers.json"), meta | {"files": files})


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"semantic": ((0, 1), (1, 0), (0, 1))}, "unique semantic .* items 1 and 3"),
        ({"collaborative": ((0, 0), (0, 4), (1, 3))}, "collaborative codes from 0 to 3 .* found 4"),
        ({"collaborative": ((0, 0), (0, -1), (1, 3))}, "found -1"),
        ({"collaborative": ((0, 0), (1, 1), (1, 3))}, "same 1 shared codes .* found item 2"),
        ({"collaborative": ((0,), (1,), (2,))}, "of one shape"),
        ({"shared_levels": 3}, "from 0 to 2 .* found 3"),
    ],
)
def test_tables_that_nobody_should_use(tmp_path, changes, found):
    with pytest.raises(UserError, match=found):
        save_table(str(tmp_path), table(**changes), {})
    assert not list(tmp_path.iterdir()), "nothing is written"
    # The same table from another program is refused on loading.
    bad = table(**changes)
    np.savez(tmp_path / "identifiers.npz", **bad.codes)
    meta = {"hash": bad.hash, "shared_levels": bad.shared_levels, "codes": 4}
    meta |= {"data_hash": "d", "training_split": "by_user-0"}
    seal(tmp_path, meta)
    with pytest.raises(UserError, match=found):
        load_table(str(tmp_path), data_hash="d")


def test_files_that_are_missing_changed_or_of_another_catalogue(tmp_path):
    with pytest.raises(UserError, match="found no such file"):
        load_table(str(tmp_path), data_hash="d")
    save_table(str(tmp_path), table(), {})
    with pytest.raises(UserError, match=r"identifiers of the log e .* found those of d"):
        load_table(str(tmp_path), data_hash="e")
    np.savez(tmp_path / "identifiers.npz", **table(semantic=((0, 3), (0, 2), (1, 0))).codes)
    seal(tmp_path, json.loads((tmp_path / "identifiers.json").read_text()))
    with pytest.raises(UserError, match=f"of hash {table().hash}"):
        load_table(str(tmp_path), data_hash="d")
    save_table(str(tmp_path), table(), {})
    whole = (tmp_path / "identifiers.npz").read_bytes()
    for content in (b"other", whole[: len(whole) // 2], b""):
        (tmp_path / "identifiers.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"expected .* bytes in .*; run launch.train"):
            load_table(str(tmp_path), data_hash="d")
    save_table(str(tmp_path), table(), {})
    for content in (b"", b"[]", b"{", b"\xe9", b"[" * 100_000, b"{}"):
        (tmp_path / "identifiers.json").write_bytes(content)
        with pytest.raises(UserError, match=r"expected identifiers.* at .*, found .*; run"):
            load_table(str(tmp_path), data_hash="d")


def test_a_flipped_bit_is_found(tmp_path):
    save_table(str(tmp_path), table(), {"collisions": 0.25})
    for name in ("identifiers.npz", "identifiers.json"):
        for what in flipped_bits(tmp_path / name):
            with pytest.raises(UserError, match=r"; run launch.train"):
                load_table(str(tmp_path), data_hash="d")
                pytest.fail(what)


@pytest.mark.parametrize("key", ["shared_levels", "codes", "data_hash", "hash", "arrays"])
def test_values_of_another_type_end_in_one_line(tmp_path, key):
    save_table(str(tmp_path), table(), {})
    if key == "arrays":
        names = {source: np.full((3, 2), "0") for source in ("semantic", "collaborative")}
        np.savez(tmp_path / "identifiers.npz", **names)
    meta = json.loads((tmp_path / "identifiers.json").read_text())
    if key != "arrays":
        meta[key] = [meta[key]]
    seal(tmp_path, meta)
    with pytest.raises(UserError, match=r"none that can be read \(TypeError\)"):
        load_table(str(tmp_path), data_hash="d")


def test_identifiers_of_any_length_are_saved_and_loaded(tmp_path):
    codes = np.array([[0, 3, 4], [0, -1, -1], [2, 0, -1]])
    made = identifiers.of_one_alphabet(codes, 5, data_hash="d", training_split="s", pieces="abc")
    save_table(str(tmp_path), made, {})
    again = load_table(str(tmp_path), data_hash="d")
    assert again.alphabet == identifiers.PIECES and again.pieces == "abc"
    assert again.codes["collaborative"].tolist() == codes.tolist()
    # What the codes mean is part of the hash; that of a table of levels is what it was before.
    symbols = identifiers.of_one_alphabet(codes, 5, data_hash="d", training_split="s")
    assert symbols.alphabet == identifiers.SYMBOLS
    assert len({made.hash, symbols.hash, again.hash}) == 2
    assert table().hash == "7889f4181f866a32"


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        ([[0, 1], [0, 1]], "unique semantic identifiers"),
        ([[0, 1], [-1, 2]], "codes and then -1 to the end"),
        ([[0, -1, 1], [0, 1, 1]], r"found \[0, -1, 1\] of item 1"),
        ([[0, 1], [0, 5]], "codes from 0 to 4"),
        ([[0, 1], [0, -2]], "found -2"),
    ],
)
def test_broken_identifiers_of_any_length_are_refused(codes, words, tmp_path):
    made = identifiers.of_one_alphabet(np.array(codes), 5, data_hash="d", training_split="s")
    with pytest.raises(UserError, match=words):
        save_table(str(tmp_path), made, {})
    assert not list(tmp_path.iterdir())
