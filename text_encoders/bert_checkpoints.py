"""Reads Hugging Face's checkpoints of BERT, RoBERTa and XLM-R."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from core import tensor_files
from core.errors import UserError
from core.files import read_json
from core.tensor_files import Tensors
from text_encoders.bert import BertConfig, parameter_shapes

Params = dict[str, Any]
# Of config.json's `model_type`; those of the second kind count positions from their padding's id.
BERT, FROM_PADDING = "bert", ("roberta", "xlm-roberta")
SETTINGS = "config.json"
_AGAIN = "download the whole folder again"
_WHOLE = {
    "embeddings.word_embeddings.weight": "words/embedding",
    "embeddings.position_embeddings.weight": "positions/embedding",
    "embeddings.token_type_embeddings.weight": "types/embedding",
    "embeddings.LayerNorm.weight": "embedding_norm/norm/scale",
    "embeddings.LayerNorm.bias": "embedding_norm/norm/bias",
}
_BLOCKS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "attention_norm/norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "mlp_norm/norm",
}
# Before the names of whole models; older files call a norm's parts gamma and beta.
_PREFIX = re.compile(r"^(bert|roberta)\.")
_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# Buffers, the pooler of the first training task, and heads.
_UNUSED = re.compile(r"embeddings\.(position|token_type)_ids|(pooler|cls|lm_head)\..+")
_SIZES = {
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
    "types": "type_vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
}
# What no tensor's shape tells, with the values that this network has; the first is the default.
_EXPECTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}


def read_settings(folder: pathlib.Path) -> dict[str, Any]:
    """Reads config.json of a checkpoint. Raises UserError where it is missing or malformed."""
    return read_json(str(folder / SETTINGS), "the settings of a text encoder", _AGAIN)


def is_bert(folder: pathlib.Path) -> bool:
    """Tells whether a folder's config.json is that of a network that is here.

    Raises:
      UserError: it is malformed.
    """
    if not (folder / SETTINGS).is_file():
        return False
    return read_settings(folder).get("model_type") in (BERT, *FROM_PADDING)


def bert_config(folder: pathlib.Path) -> BertConfig:
    """Returns the shapes that config.json tells.

    Raises:
      UserError: it is missing or malformed, or tells another network than BERT or XLM-R.
    """
    said, file = read_settings(folder), folder / SETTINGS
    kind = said.get("model_type")
    if kind not in (BERT, *FROM_PADDING):
        raise UserError(
            f"expected model_type of {', '.join((BERT, *FROM_PADDING))} in {file}, found "
            f"{str(kind)[:60]!r}; pass the folder of such an encoder"
        )
    for name, values in _EXPECTED.items():
        if said.get(name, values[0]) not in values:
            raise UserError(
                f"expected {name} of {values[0]!r} in {file}, found {str(said[name])[:60]!r}; pass "
                "another encoder"
            )
    epsilon = said.get("layer_norm_eps", 1e-12)
    padding = said.get("pad_token_id", 1) if kind in FROM_PADDING else -1
    if isinstance(epsilon, bool) or not isinstance(epsilon, float):
        raise UserError(
            f"expected layer_norm_eps of a number like 1e-12 in {file}, found {epsilon!r:.60}; "
            f"{_AGAIN}"
        )
    if isinstance(padding, bool) or not isinstance(padding, int):
        raise UserError(
            f"expected pad_token_id of a whole number in {file}, found {padding!r:.60}; {_AGAIN}"
        )
    numbers = tensor_files.sizes_of(said, _SIZES, file)
    try:
        return BertConfig(norm_epsilon=epsilon, first_position=padding + 1, **numbers)
    except ValueError as error:
        raise UserError(f"{error} in {file}; {_AGAIN}") from None


def tensors_of(config: BertConfig) -> dict[str, tuple[str, bool, tuple[int, ...]]]:
    """Returns (our name, of a layer, shape in the file) of each tensor, in the network's order."""
    ours = parameter_shapes(config)
    names: dict[str, tuple[str, bool, tuple[int, ...]]] = {
        theirs: (name, False, ours[name]) for theirs, name in _WHOLE.items()
    }
    for layer in range(config.layers):
        for theirs, block in _BLOCKS.items():
            for part in ("weight", "bias"):
                kind = "scale" if "norm" in block else "kernel"
                name = f"layers/{block}/{kind if part == 'weight' else part}"
                # PyTorch keeps the transposes of our matrices.
                names[f"encoder.layer.{layer}.{theirs}.{part}"] = (
                    name,
                    True,
                    ours[name][1:][::-1],
                )
    return names


def read_parameters(path: pathlib.Path, config: BertConfig) -> Params:
    """Reads parameters float32 of a file of safetensors, or a folder with one or with shards.

    Raises:
      UserError: as `core.tensor_files`; or a checkpoint of another architecture or size: names the
        first tensor that differs.
    """
    expected = tensors_of(config)
    stacks: dict[str, list[np.ndarray]] = {}
    with tensor_files.opened(path) as tensors:
        files = _names(tensors, path)
        _check(expected, files, tensors, path)
        for name, (ours, of_layer, _) in expected.items():
            array = tensors.read(files[name])
            stacks.setdefault(ours, []).append(array.T if of_layer else array)
    flat = {
        name: jnp.asarray(np.stack(stack) if name.startswith("layers/") else stack[0])
        for name, stack in stacks.items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def _names(tensors: Tensors, path: Any) -> dict[str, str]:
    """Returns the names in the file by those of today, without what is not used."""
    names: dict[str, str] = {}
    for name in sorted(tensors.names()):
        today = _PREFIX.sub("", name)
        for old, new in _OLD.items():
            today = today.replace(old, new)
        if today in names:
            raise UserError(
                f"expected each tensor once, found {names[today]} and {name} in {path}; {_AGAIN}"
            )
        names[today] = name
    return {today: name for today, name in names.items() if not _UNUSED.fullmatch(today)}


def _check(expected: Any, files: dict[str, str], tensors: Tensors, path: Any) -> None:
    advice = "pass an encoder whose config.json belongs to its tensors"
    for name, (_, _, shape) in expected.items():
        if name not in files:
            raise UserError(f"expected the tensor {name}, found none in {path}; {advice}")
        stored = tensors.shape(files[name])
        if stored != shape:
            raise UserError(
                f"expected {name} of shape {list(shape)}, found {list(stored)} in {path}; {advice}"
            )
    unknown = sorted(files.keys() - expected.keys())
    if unknown:
        raise UserError(
            f"expected only tensors of a BERT of {len(expected)} tensors, found "
            f"{files[unknown[0]]} in {path}; {advice}"
        )
