"""Safetensors of others: shards, and what a wrong file ends in."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.flax import save_file

from core import tensor_files
from core.errors import UserError

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float32)
SHARDS = {"one.safetensors": {"a": A}, "two.safetensors": {"b": B}}


def write(folder, shards, index):
    folder.mkdir()
    for file, tensors in shards.items():
        save_file({name: jnp.asarray(value) for name, value in tensors.items()}, folder / file)
    if index is not None:
        text = index if isinstance(index, str) else json.dumps({"weight_map": index})
        (folder / tensor_files.INDEX).write_text(text)
    return folder


def read(path):
    with tensor_files.opened(path) as tensors:
        return {name: tensors.read(name) for name in tensors.names()}


def raw(path, dtype, size):
    """A file whose tensor `a` of four values is of any dtype."""
    header = {"a": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4 * size]}}
    content = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + bytes(4 * size))
    return path


def test_one_file_and_shards_are_read_alike(tmp_path):
    index = {"a": "one.safetensors", "b": "two.safetensors"}
    sharded = write(tmp_path / "shards", SHARDS, index)
    whole = write(tmp_path / "whole", {tensor_files.SINGLE: {"a": A, "b": B}}, None)
    assert tensor_files.is_there(sharded) and tensor_files.is_there(whole)
    assert not tensor_files.is_there(tmp_path)
    for path in (sharded, whole, whole / tensor_files.SINGLE):
        arrays = read(path)
        assert arrays.keys() == {"a", "b"}
        np.testing.assert_array_equal(arrays["a"], A)
        np.testing.assert_array_equal(arrays["b"], B)


def test_half_precision_is_read_as_float32(tmp_path):
    halves = {"a": jnp.asarray(A, jnp.bfloat16), "b": jnp.asarray(A, jnp.float16)}
    arrays = read(write(tmp_path / "half", {tensor_files.SINGLE: halves}, None))
    assert all(array.dtype == np.float32 for array in arrays.values())
    np.testing.assert_array_equal(arrays["a"], A)
    np.testing.assert_array_equal(arrays["b"], A)


@pytest.mark.parametrize(
    ("shards", "index", "message"),
    [
        (SHARDS, {"a": "../one.safetensors", "b": "two.safetensors"}, r"beside .*found '\.\./one"),
        (SHARDS, {"a": "/etc/passwd"}, "found '/etc/passwd'"),
        (SHARDS, {"a": "..", "b": "two.safetensors"}, r"no .*/\.\.;|beside"),
        (SHARDS, {"a": 3}, "expected a file's name beside .* for a, found '3'"),
        (SHARDS, {"a": ["one.safetensors"]}, "expected a file's name beside"),
        (SHARDS, {"a": "one.safetensors", "b": "three.safetensors"}, "found no .*three.safe"),
        (SHARDS, {"a": "one.safetensors", "b": "one.safetensors"}, "expected b in one.* in none"),
        (SHARDS, {"a": "two.safetensors", "b": "one.safetensors"}, "expected a in two.*in one"),
        (
            SHARDS | {"two.safetensors": {"a": A, "b": B}},
            {"a": "one.safetensors", "b": "two.safetensors"},
            "expected each tensor in one file, found a in .*one.safetensors and in .*two.safe",
        ),
        (
            SHARDS | {"two.safetensors": {"b": B, "c": B}},
            {"a": "one.safetensors", "b": "two.safetensors"},
            "expected c in none",
        ),
        (SHARDS, {}, "expected a weight_map in"),
        (SHARDS, "[]", "expected the index of a checkpoint at .*JSON that is a list"),
        (SHARDS, '{"weight_map": {"a": "one.safe', "expected the index of a checkpoint at"),
        (SHARDS, '{"weight_map": ["a"]}', "expected a weight_map in"),
        (SHARDS, "[" * 100_000, "expected the index of a checkpoint at .*nested too deeply"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path, shards, index, message):
    with pytest.raises(UserError, match=message) as caught:
        read(write(tmp_path / "c", shards, index))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("dtype", "size"), [("F8_E4M3", 1), ("F8_E5M2", 1), ("I8", 1), ("I64", 8)])
def test_weights_that_are_no_floats_are_refused_by_name(tmp_path, dtype, size):
    path = raw(tmp_path / "m.safetensors", dtype, size)
    with pytest.raises(UserError, match=f"found a of {dtype} in .*not quantised"):
        read(path)
    with tensor_files.opened(path) as tensors, pytest.raises(UserError, match="not quantised"):
        tensors.shape("a")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    broken = A.copy()
    broken[1, 1] = value
    folder = write(tmp_path / "c", {tensor_files.SINGLE: {"a": broken, "b": B}}, None)
    with pytest.raises(UserError, match=f"expected finite weights, found {value} in a of"):
        read(folder)
    # What float32 cannot hold.
    path = raw(tmp_path / "m.safetensors", "F64", 8)
    content = path.read_bytes()[:-8] + struct.pack("<d", 1e300)
    path.write_bytes(content)
    with pytest.raises(UserError, match="expected finite weights, found inf in a of"):
        read(path)


def test_cut_and_odd_files_are_refused(tmp_path):
    path = raw(tmp_path / "m.safetensors", "F32", 4)
    whole = path.read_bytes()
    unknown = whole.replace(b'"F32"', b'"F99"')
    for content in (b"", whole[:7], whole[:20], whole[:-1], whole + b"x", unknown, b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(UserError, match="which is none") as caught:
            read(path)
        assert "\n" not in str(caught.value)
