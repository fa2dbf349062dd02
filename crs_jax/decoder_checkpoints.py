"""Reads the decoder's parameters from Hugging Face safetensors of Qwen3, in one file or several."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from core import tensor_files
from core.errors import UserError
from core.files import read_json
from core.partitioning import Partition, placed
from core.tensor_files import Tensors
from crs_jax.decoder import init_params
from crs_jax.decoder_config import DecoderConfig

Params = dict[str, Any]
_EMBEDDING = "model.embed_tokens.weight"
_WHOLE = {_EMBEDDING: "embedder/embedding", "model.norm.weight": "final_norm/scale"}
_OF_LAYER = {
    "input_layernorm": "attention_norm/scale",
    "self_attn.q_proj": "attention/query/kernel",
    "self_attn.k_proj": "attention/key/kernel",
    "self_attn.v_proj": "attention/value/kernel",
    "self_attn.o_proj": "attention/out/kernel",
    "self_attn.q_norm": "attention/query_norm/scale",
    "self_attn.k_norm": "attention/key_norm/scale",
    "post_attention_layernorm": "mlp_norm/scale",
    "mlp.gate_proj": "mlp/gate/kernel",
    "mlp.up_proj": "mlp/up/kernel",
    "mlp.down_proj": "mlp/down/kernel",
}
# Before the names of all but the output layer; files of a network without one may leave it out.
_PREFIX = "model."
# The output layer, which a file may repeat though it is the embedding.
_OUTPUT = "lm_head.weight"
# What no tensor's shape tells, by the names of config.json.
NUMBERS = {"rope_theta": "rope_theta", "norm_epsilon": "rms_norm_eps"}
# Rows of both that are compared at once.
_ROWS = 16_384
# A new row's distance from the mean of the text's rows, in their standard deviations.
_SPREAD = 0.1
# Which shapes do not tell either, and this network has in one form alone; files may leave them out.
_EXPECTED = {"hidden_act": "silu", "use_sliding_window": False}
# What config.json calls the sizes of a Qwen3.
SIZES = {
    "text_rows": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_dim": "intermediate_size",
}


def tensors_of(config: DecoderConfig) -> dict[str, tuple[str, int | None, tuple[int, ...]]]:
    """Returns (our name, layer, shape in the file) of each tensor, in the network's order."""
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    ours = {n: leaf.shape for n, leaf in traverse_util.flatten_dict(shapes, sep="/").items()}
    names: dict[str, tuple[str, int | None, tuple[int, ...]]] = {}
    names[_EMBEDDING] = (_WHOLE[_EMBEDDING], None, ours[_WHOLE[_EMBEDDING]])
    for layer in range(config.layers):
        for theirs, name in _OF_LAYER.items():
            # PyTorch keeps the transposes of our matrices.
            shape = ours[f"layers/{name}"][1:][::-1]
            names[f"model.layers.{layer}.{theirs}.weight"] = (f"layers/{name}", layer, shape)
    name = _WHOLE["model.norm.weight"]
    return names | {"model.norm.weight": (name, None, ours[name])}


def checkpoint_rows(path: str | pathlib.Path) -> int:
    """Counts the rows of a checkpoint's embedding.

    Raises:
      UserError: no such file, or it has no embedding of Qwen3's name.
    """
    with tensor_files.opened(path) as tensors:
        name = _EMBEDDING if _EMBEDDING in tensors else _EMBEDDING.removeprefix(_PREFIX)
        if name not in tensors:
            first = min(tensors.names(), default="no tensor")
            raise UserError(
                f"expected a Qwen3 checkpoint with {_EMBEDDING}, found {first} in {path}; pass "
                "another"
            )
        return tensors.shape(name)[0]


def check(path: str | pathlib.Path, config: DecoderConfig) -> None:
    """Holds a checkpoint's tensors to a network's; reads no more than an output layer of its own.

    Raises:
      UserError: as `from_hugging_face`.
    """
    with tensor_files.opened(path) as tensors:
        _check(config, _by_names_of(tensors, tensors_of(config)), tensors, path)


def from_hugging_face(
    path: str | pathlib.Path,
    config: DecoderConfig,
    key: jax.Array,
    partition: Partition | None = None,
    *,
    reads_output: bool = True,
) -> Params:
    """Reads parameters float32 of a safetensors file, or of a folder with one file or an index.

    New rows are the mean of the text's rows plus a tenth of their standard deviation in each
    column, so that at first no id token is likelier than another; LoRA starts at no addition.

    Args:
      path: of the file or folder.
      config: of the network; all but `new_rows` must be the file's.
      key: of the new rows and of LoRA.
      partition: where parameters lie; each goes there from the host, one after the other. None
        means one device.
      reads_output: whether logits will be computed, for which the output layer must be the
        embedding.

    Raises:
      UserError: no such file, or a checkpoint of another architecture or size: names the first
        tensor that differs; or its output layer is not its embedding, or config.json beside it
        tells other rotary positions or norms.
    """
    with tensor_files.opened(path) as tensors:
        expected = _by_names_of(tensors, tensors_of(config))
        _check(config, expected, tensors, path, reads_output=reads_output)
        put = functools.partial(_put, partition)
        flat = {name: put(name, leaf) for name, leaf in _new_parameters(config, key).items()}
        parts: dict[str, list[str]] = {}
        for name, (ours, _, _) in expected.items():
            parts.setdefault(ours, []).append(name)
        # One parameter after the other: the host holds one stack of layers at a time.
        for ours, names in parts.items():
            layers = [tensors.read(n) for n in names]
            stacked = expected[names[0]][1] is not None
            flat[ours] = put(ours, np.stack([a.T for a in layers]) if stacked else layers[0])
    name = "embedder/new_embedding"
    place = None if partition is None else partition.shardings({name: 0})[name]

    @functools.partial(jax.jit, out_shardings=place)
    def new_rows(table):
        noise = jax.random.normal(key, (config.new_rows, config.width))
        return table.mean(0) + _SPREAD * table.std(0) * noise

    flat[name] = new_rows(flat[_WHOLE[_EMBEDDING]])
    return traverse_util.unflatten_dict(flat, sep="/")


def _put(partition: Partition | None, name: str, array: Any) -> jax.Array:
    if partition is None:
        return jnp.asarray(array)
    return placed(array, partition.shardings({name: array})[name])


def _new_parameters(config: DecoderConfig, key: jax.Array) -> dict[str, jax.Array]:
    """Draws LoRA's parameters, which no checkpoint has: a random, b zero."""
    if not config.lora_rank:
        return {}
    shapes = jax.eval_shape(lambda: init_params(config, key))
    parameters = {}
    for number, (name, leaf) in enumerate(traverse_util.flatten_dict(shapes, sep="/").items()):
        if name.endswith("lora_a"):
            parameters[name] = 0.02 * jax.random.normal(jax.random.fold_in(key, number), leaf.shape)
        elif name.endswith("lora_b"):
            parameters[name] = jnp.zeros(leaf.shape)
    return parameters


def _by_names_of(tensors: Tensors, expected: dict[str, Any]) -> dict[str, Any]:
    """Returns `expected` by the names that a file uses, with or without the prefix."""
    if _EMBEDDING in tensors or _EMBEDDING.removeprefix(_PREFIX) not in tensors:
        return expected
    return {name.removeprefix(_PREFIX): about for name, about in expected.items()}


def _check(
    config: DecoderConfig,
    expected: Any,
    tensors: Tensors,
    path: Any,
    *,
    reads_output: bool = True,
) -> None:
    advice = "pass a Qwen3 checkpoint of config.model.size"
    for name, (_, _, shape) in expected.items():
        if name not in tensors:
            raise UserError(f"expected the tensor {name} of Qwen3, found none in {path}; {advice}")
        stored = tensors.shape(name)
        if stored != shape:
            raise UserError(
                f"expected {name} of shape {list(shape)}, found {list(stored)} in {path}; {advice}"
            )
    unknown = sorted(tensors.names() - expected.keys() - {_OUTPUT})
    if unknown:
        raise UserError(f"expected only tensors of Qwen3, found {unknown[0]} in {path}; {advice}")
    about, said = read_about(path)
    tied = bool(said.get("tie_word_embeddings", True))
    embedding = next(iter(expected))
    if reads_output and not (_repeated(tensors, embedding) if _OUTPUT in tensors else tied):
        raise UserError(
            f"expected a Qwen3 whose output layer is its embedding, as of 0.6B to 4B, found one "
            f"of its own ({_OUTPUT}, or tie_word_embeddings of config.json) in {path}; pass another"
        )
    for name, wanted in _EXPECTED.items():
        if said.get(name, wanted) != wanted:
            raise UserError(
                f"expected {name} of {wanted!r} in {about}, found {said[name]!r:.60}; pass another "
                "checkpoint"
            )
    for ours, theirs in NUMBERS.items():
        value = said.get(theirs, getattr(config, ours))
        if value != getattr(config, ours):
            raise UserError(
                f"expected {theirs} of {getattr(config, ours):g} as config.model.{ours}, found "
                f"{value!s:.60} in {about}; pass --config.model.{ours}={value!s:.60}"
            )


def _repeated(tensors: Tensors, embedding: str) -> bool:
    """Tells whether the output layer of a file is its embedding once more."""
    ours, theirs = (tensors.part(name) for name in (embedding, _OUTPUT))
    if ours.get_shape() != theirs.get_shape():
        return False
    rows = ours.get_shape()[0]
    # safetensors slices no further than there are rows.
    parts = [slice(start, min(start + _ROWS, rows)) for start in range(0, rows, _ROWS)]
    return all(np.array_equal(np.asarray(ours[p]), np.asarray(theirs[p])) for p in parts)


def read_about(path: str | pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]]:
    """Reads config.json beside a checkpoint.

    Returns:
      Its path, and what it says, with what it says of rotary positions; nothing where there is no
      file.

    Raises:
      UserError: no JSON of a checkpoint, or of one whose rotary positions are scaled.
    """
    path = pathlib.Path(path)
    about = (path if path.is_dir() else path.parent) / "config.json"
    if not about.exists():
        return about, {}
    values = read_json(str(about), "the settings of a checkpoint", "download the checkpoint again")
    # Older files have `rope_scaling`, newer ones `rope_parameters`; each may say that it is none.
    for key in ("rope_scaling", "rope_parameters"):
        rotary = values.get(key) or {}
        kind = rotary
        if isinstance(rotary, dict):
            kind = rotary.get("rope_type", rotary.get("type", "default"))
        if kind != "default":
            raise UserError(
                f"expected rotary positions that are not scaled, found {key} of {str(kind)[:60]!r} "
                f"in {about}; pass another checkpoint"
            )
        values = values | (rotary if isinstance(rotary, dict) else {})
    return about, values
