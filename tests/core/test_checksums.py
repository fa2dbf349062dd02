"""Checksums of files: what was changed by a bit is refused in one line."""

import json
import os

import pytest
from damage import flipped_bits

from core import checksums
from core.errors import UserError


def test_a_file_has_the_checksum_of_its_bytes(tmp_path):
    content = os.urandom(3_000_001)  # more than one read
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "empty").write_bytes(b"")
    assert checksums.of_file(str(tmp_path / "a")) == checksums.of_bytes(content)
    # XXH3 of 64 bits, seed 0, of nothing: the value of its specification.
    assert checksums.of_file(str(tmp_path / "empty")) == "2d06800538d394c2"


def test_every_flipped_bit_of_a_described_file_is_found(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(os.urandom(5_000))
    described = checksums.describe(str(tmp_path), ["a"])
    checksums.check(str(tmp_path), described, "copy it again")
    for what in flipped_bits(path, 30):
        with pytest.raises(UserError, match=r"its content has changed .*; copy it again"):
            checksums.check(str(tmp_path), described, "copy it again")
            pytest.fail(what)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"expected 5000 bytes in .*, found 4999 bytes; copy"):
        checksums.check(str(tmp_path), described, "copy it again")
    path.unlink()
    with pytest.raises(UserError, match="found no such file; copy"):
        checksums.check(str(tmp_path), described, "copy it again")


@pytest.mark.parametrize(
    "described", [None, [], {"a": 1}, {"a": {"bytes": 1}}, {"../a": {"bytes": 1, "xxh3": ""}}]
)
def test_a_description_of_no_files_is_one_line(tmp_path, described):
    with pytest.raises(UserError, match=r"sizes and checksums of the files in .*; bring it back"):
        checksums.check(str(tmp_path), described, "bring it back")


def test_sealed_values_come_back_and_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "a.json"
    values = {"name": "Größe", "sizes": (1, 2), "share": 0.1, "none": None}
    checksums.write_sealed(str(path), values)
    read = values | {"sizes": [1, 2]}
    assert checksums.read_sealed(str(path), "values", "again") == read
    for what in flipped_bits(path, len(path.read_bytes())):
        try:
            assert checksums.read_sealed(str(path), "values", "again") == read, what
        except UserError as error:
            assert "\n" not in str(error) and "again" in str(error), what
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"values with its own checksum at .*, found none; again"):
        checksums.read_sealed(str(path), "values", "again")


def test_a_saved_file_stands_with_its_checksum(tmp_path):
    path = str(tmp_path / "a.model")
    assert not checksums.is_saved(path)
    checksums.save(path, b"content")
    assert checksums.is_saved(path)
    checksums.verify(path, "again")
    (tmp_path / "a.model").write_bytes(b"consent")
    with pytest.raises(UserError, match="has changed since it was saved; again"):
        checksums.verify(path, "again")


@pytest.mark.parametrize("name", ["a\0", "\ud800"])
def test_names_that_no_file_has_are_one_line(tmp_path, name):
    with pytest.raises(UserError, match="expected sizes and checksums of the files"):
        checksums.check(str(tmp_path), {name: {"bytes": 1, "xxh3": ""}}, "write it again")
