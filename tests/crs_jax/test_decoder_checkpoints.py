"""Checkpoints of strangers: safetensors and JSON that claim too much end in one line."""

import json
import pathlib
import struct

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save

from core.errors import UserError
from crs_jax import decoder_checkpoints
from crs_jax.decoder_config import DecoderConfig
from gensar_jax.t5 import checkpoints as t5_checkpoints
from gensar_jax.t5.config import T5Config

REFERENCE = pathlib.Path(__file__).parent.parent / "reference"
SIZES = {"width": 12, "layers": 2, "heads": 6, "kv_heads": 2, "head_dim": 4, "mlp_dim": 20}
CONFIG = DecoderConfig(text_rows=40, new_rows=5, **SIZES)
KEY = jax.random.key(0)
EMBEDDING = "model.embed_tokens.weight"


def written(header, values=b"", size=None):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if size is None else size) + content + values


def tensor(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


WRONG = {
    "nothing": b"",
    "a header of gigabytes": written(b"{}", size=2**40),
    "a header longer than the file": written(b"{}", size=2**20),
    "a header that ends the count": written(b"{}", size=2**64 - 1),
    "a header that is no JSON": written(b"{" * 100),
    "a deep header": written(b'{"a":' * 100_000),
    "a header that is a list": written([]),
    "values beyond the file": written({EMBEDDING: tensor(offsets=(0, 2**40))}, bytes(4)),
    "values before the file": written({EMBEDDING: tensor(offsets=(-4, 0))}, bytes(4)),
    "a shape of terabytes": written({EMBEDDING: tensor(shape=(2**40,))}, bytes(4)),
    "a shape that overflows": written({EMBEDDING: tensor(shape=(2**62, 16))}, bytes(4)),
    "values over each other": written({"a": tensor(), EMBEDDING: tensor()}, bytes(4)),
    "bytes of no tensor": written({EMBEDDING: tensor()}, bytes(8)),
    "an unknown type": written({EMBEDDING: tensor("Q99")}, bytes(4)),
    "a pickle": b"\x80\x04N.",
}


@pytest.mark.parametrize("name", WRONG)
def test_safetensors_that_claim_what_they_have_not(tmp_path, name):
    path = tmp_path / "model.safetensors"
    path.write_bytes(WRONG[name])
    t5 = T5Config(vocab_size=40, emb_dim=12, num_heads=3, head_dim=5, mlp_dim=20,
                  num_encoder_layers=2, num_decoder_layers=2)  # fmt: skip
    for read in (
        lambda: decoder_checkpoints.checkpoint_rows(path),
        lambda: decoder_checkpoints.from_hugging_face(path, CONFIG, KEY),
        lambda: t5_checkpoints.from_hugging_face(path, t5, 40, KEY),
    ):
        with pytest.raises(UserError, match=r"which is none \(.*download it") as error:
            read()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.uint8, np.float16, "F8_E4M3", "F4"])
def test_tensors_of_other_types_are_read_or_refused(tmp_path, dtype):
    """What holds numbers is read as numbers; what JAX has no type for is refused in one line."""
    tensors = load_file(REFERENCE / "qwen3" / "qwen3.safetensors")
    path = tmp_path / "model.safetensors"
    if isinstance(dtype, str):
        content = save({name: array.astype(np.uint8) for name, array in tensors.items()})
        size = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + size])
        header[EMBEDDING]["dtype"] = dtype
        if dtype == "F4":
            header[EMBEDDING]["shape"][-1] *= 2
        content = written(header, content[8 + size :])
    else:
        content = save({name: array.astype(dtype) for name, array in tensors.items()})
    path.write_bytes(content)
    try:
        params = decoder_checkpoints.from_hugging_face(path, CONFIG, KEY)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[]", "expected the index of a checkpoint"),
        ("[" * 100_000, "nested too deeply"),
        ("{}", "expected a weight_map in"),
        ('{"weight_map": {}}', "expected a weight_map in"),
        ('{"weight_map": ["a"]}', "expected a weight_map in"),
        ('{"weight_map": {"a": ["b"]}}', "expected a file's name beside"),
        ('{"weight_map": {"a": "../b"}}', "expected a file's name beside"),
        ('{"weight_map": {"a": "/dev/zero"}}', "expected a file's name beside"),
        ('{"weight_map": {"a": ""}}', "expected a file of safetensors, found no"),
    ],
)
def test_an_index_names_files_beside_it(tmp_path, text, found):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=found) as error:
        decoder_checkpoints.checkpoint_rows(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", "3", '{"rope_parameters": 3}', "{", "\xff", "1" * 5000]
)
def test_settings_beside_a_checkpoint(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"expected .* config\.json|in .*config\.json|at .*config"):
        decoder_checkpoints.read_about(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    config = T5Config(vocab_size=40, emb_dim=12, num_heads=3, head_dim=5, mlp_dim=20,
                      num_encoder_layers=2, num_decoder_layers=2)  # fmt: skip
    with pytest.raises(UserError):
        t5_checkpoints.load(tmp_path, config, 40, KEY)
