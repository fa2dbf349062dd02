"""Parameters from pre-trained checkpoints: Hugging Face safetensors and T5X; no PyTorch, no T5X.

Rows of the vocabulary beyond the text (behaviour and code tokens) are new: they start near the mean
of the text's rows, so that at first no new token is likelier than another.
"""

from __future__ import annotations

import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util

from core import tensor_files
from core.errors import UserError
from core.files import read_json
from gensar_jax.t5.config import T5Config
from gensar_jax.t5.layers import NORM_EPSILON
from gensar_jax.t5.network import Transformer

Params = dict[str, Any]
# A new row's distance from the mean, in standard deviations of the text's rows.
_SPREAD = 0.1
_EMBEDDING = "token_embedder/embedding"
_OUTPUT = "decoder/logits_dense/kernel"
# In the folder of a T5X checkpoint.
_MSGPACK, _ORBAX = "checkpoint", "state"
_SETTINGS = "config.json"
_SHOWN = 100  # characters of a name in a message
# Bytes that arrays of a checkpoint may have, beside what each byte of its files justifies.
_FREE_BYTES, _UNPACKED_A_BYTE = 2**26, 100
_HF_DEFAULTS = {
    "feed_forward_proj": "relu",
    "layer_norm_epsilon": NORM_EPSILON,
    "relative_attention_max_distance": 128,
    "tie_word_embeddings": True,
}

# Copies of the shared embedding, and a table that no version uses, which some files hold.
_IGNORED = re.compile(
    r"(encoder|decoder)\.embed_tokens\.weight"
    r"|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
)
_HF_LAYERS = {
    ("encoder", "0"): ("attention", "pre_attention_layer_norm"),
    ("encoder", "1"): ("mlp", "pre_mlp_layer_norm"),
    ("decoder", "0"): ("self_attention", "pre_self_attention_layer_norm"),
    ("decoder", "1"): ("encoder_decoder_attention", "pre_cross_attention_layer_norm"),
    ("decoder", "2"): ("mlp", "pre_mlp_layer_norm"),
}
_HF_KERNELS = {"q": "query", "k": "key", "v": "value", "o": "out"}


def our_name(name: str) -> str | None:
    """Returns T5X's path of a Hugging Face parameter; None if it has none."""
    whole = {
        "shared.weight": _EMBEDDING,
        "lm_head.weight": _OUTPUT,
        "encoder.final_layer_norm.weight": "encoder/encoder_norm/scale",
        "decoder.final_layer_norm.weight": "decoder/decoder_norm/scale",
    }
    if name in whole:
        return whole[name]
    match = re.fullmatch(r"(encoder|decoder)\.block\.(\d+)\.layer\.(\d)\.(.+)\.weight", name)
    if not match or (match[1], match[3]) not in _HF_LAYERS:
        return None
    stack, layer, place, rest = match.groups()
    block, norm = _HF_LAYERS[stack, place]
    if rest == "layer_norm":
        return f"{stack}/layers_{layer}/{norm}/scale"
    if rest == "SelfAttention.relative_attention_bias":
        return f"{stack}/relpos_bias/rel_embedding"
    kernel = rest.split(".")[-1]
    return f"{stack}/layers_{layer}/{block}/{_HF_KERNELS.get(kernel, kernel)}/kernel"


def load(folder: str | pathlib.Path, config: T5Config, text_rows: int, key: jax.Array) -> Params:
    """Reads parameters float32 of a folder of Hugging Face's or of T5X's kind.

    Args:
      folder: with Hugging Face's model.safetensors, in one file or shards with an index, and
        config.json; or as `from_t5x` takes.
      config, text_rows, key: as in `from_hugging_face`.

    Raises:
      UserError: neither is there, a config.json of another network, or as the two functions.
    """
    folder = pathlib.Path(folder)
    if tensor_files.is_there(folder):
        _check_settings(folder / _SETTINGS, config)
        return from_hugging_face(folder, config, text_rows, key)
    if (folder / _ORBAX).is_dir() or (folder / _MSGPACK).is_file():
        return from_t5x(folder, config, text_rows, key)
    raise UserError(
        f"expected a T5 checkpoint in {folder}, found neither {tensor_files.SINGLE} nor T5X's "
        f"{_MSGPACK} or {_ORBAX}; pass a folder with one"
    )


def _check_settings(file: pathlib.Path, config: T5Config) -> None:
    """Refuses a network that differs from a config.json in what no shape shows."""
    written = read_json(str(file), "the settings of a T5", "download the whole folder")
    # Files leave out what is the default.
    said = {name: written.get(name, default) for name, default in _HF_DEFAULTS.items()}
    expected = {
        "feed_forward_proj": "relu" if config.mlp_activations == ("relu",) else "gated-gelu",
        "layer_norm_epsilon": NORM_EPSILON,
        "relative_attention_max_distance": config.max_distance,
        "tie_word_embeddings": config.logits_via_embedding,
    }
    for name, value in expected.items():
        if said[name] != value:
            raise UserError(
                f"expected {name} of {value!r} in {file}, found {said[name]!r:.60}; pass the size "
                "and version of the file"
            )


def from_hugging_face(
    path: str | pathlib.Path, config: T5Config, text_rows: int, key: jax.Array
) -> Params:
    """Returns the parameters float32 of a file or folder of safetensors, in one file or shards.

    Args:
      path: of the file or folder.
      config: of the network; its sizes must be the file's, but for the vocabulary.
      text_rows: rows of the vocabulary that are text; the file's further rows are not used, and
        the network's further rows are new.
      key: of the new rows.

    Raises:
      UserError: as `core.tensor_files`; a parameter that is missing, unknown or of another shape,
        or fewer rows than `text_rows`.
    """
    arrays: dict[str, np.ndarray] = {}
    theirs: dict[str, str] = {}
    with tensor_files.opened(path) as tensors:
        for name in sorted(tensors.names()):
            if _IGNORED.fullmatch(name) or (
                name == "lm_head.weight" and config.logits_via_embedding
            ):
                continue
            ours = our_name(name)
            if ours is None:
                raise UserError(
                    f"expected parameters of a T5, found {name!r} in {path}; pass a T5's file"
                )
            if theirs.setdefault(ours, name) != name:
                raise UserError(
                    f"expected each parameter of a T5 once, found {theirs[ours]!r} and {name!r} in "
                    f"{path}; pass a T5's file"
                )
            array = tensors.read(name)
            # PyTorch keeps the transposes of T5X's matrices, but for the embedding.
            arrays[ours] = array if ours == _EMBEDDING else array.T
    return _fitted(arrays, config, text_rows, key, str(path))


def from_t5x(
    folder: str | pathlib.Path, config: T5Config, text_rows: int, key: jax.Array
) -> Params:
    """Parameters float32 of a T5X checkpoint, a folder such as checkpoint_1000000.

    Two forms: T5X's own, a file `checkpoint` (msgpack) with the tree optimizer/target, whose leaves
    are arrays or TensorStore specifications of zarr arrays in the folder; and what T5X has written
    by default since 2023, a folder `state` of Orbax with the tree target.

    Args, raises: as `from_hugging_face`.
    """
    folder = pathlib.Path(folder)
    if (folder / _ORBAX).is_dir():
        arrays = _orbax_arrays(folder / _ORBAX)
    elif (folder / _MSGPACK).is_file():
        arrays = _msgpack_arrays(folder)
    else:
        raise UserError(
            f"expected a T5X checkpoint, found no {folder / _MSGPACK} and no {folder / _ORBAX}; "
            "pass a folder checkpoint_N"
        )
    return _fitted(arrays, config, text_rows, key, str(folder))


def to_t5x(folder: str | pathlib.Path, params: Params, step: int = 0) -> pathlib.Path:
    """Writes parameters as a T5X checkpoint, in T5X's own form, without an optimizer's state.

    T5X infers from it as it is, and trains on from it with t5x_bridge/gin/initial.gin, which starts
    the optimizer anew.

    Args:
      folder: where the checkpoint's folder goes.
      params: of `Transformer`.
      step: N of checkpoint_N.

    Returns:
      The path of checkpoint_N.

    Raises:
      UserError: it exists.
    """
    place = pathlib.Path(folder) / f"checkpoint_{step}"
    if place.exists():
        raise UserError(f"expected a new checkpoint, found {place}; pass another folder")
    target = serialization.to_state_dict(jax.tree.map(np.asarray, params))
    content = {"version": 3, "optimizer": {"target": target, "state": {"step": np.int32(step)}}}
    partial = place.with_name(f"{place.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    (partial / _MSGPACK).write_bytes(serialization.msgpack_serialize(content))
    partial.rename(place)
    return place


def _orbax_arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Arrays float32 by name, of the tree target; the optimizer's are not read."""
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        try:
            tree: Any = checkpointer.metadata(folder.absolute()).item_metadata.tree["target"]
            _check_stored(jax.tree.leaves(tree), folder)
            item = {"target": jax.tree.map(lambda _: 0, tree)}
            whole = ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.float32)
            restored = checkpointer.restore(
                folder.absolute(),
                ocp.args.PyTreeRestore(
                    item,
                    restore_args=jax.tree.map(lambda _: whole, item),
                    partial_restore=True,
                ),
            )
        except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            raise UserError(
                f"expected the tree target of a T5X checkpoint, found none that can be read in "
                f"{folder}; copy the whole checkpoint"
            ) from error
    return traverse_util.flatten_dict(restored["target"], sep="/")


def _msgpack_arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Arrays float32 by name, from the file and the zarr arrays beside it."""
    import tensorstore

    file = folder / _MSGPACK
    try:
        target = serialization.msgpack_restore(file.read_bytes())["optimizer"]["target"]
        if not isinstance(target, dict):
            raise TypeError("no tree")
        flat = traverse_util.flatten_dict(
            target, sep="/", is_leaf=lambda _, x: isinstance(x, Mapping) and "driver" in x
        )
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"expected optimizer/target in a T5X checkpoint, found none in {file}; pass another"
        ) from error
    arrays = {}
    for name, leaf in flat.items():
        try:
            if isinstance(leaf, Mapping):
                place = _zarr_folder(folder, leaf)
                store = {"driver": "file", "path": str(place)}
                opened = tensorstore.open({"driver": "zarr", "kvstore": store}).result()
                _check_stored([opened], place)
                leaf = opened.read().result()
            arrays[name] = np.asarray(leaf, np.float32)
        except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            raise UserError(
                f"expected an array {name} in {folder}, found none that can be read; copy the "
                "whole checkpoint"
            ) from error
    return arrays


def _zarr_folder(folder: pathlib.Path, described: Mapping[str, Any]) -> pathlib.Path:
    """Returns where an array lies. Raises ValueError where that is outside the checkpoint."""
    # Paths are relative to the folder; older files keep them beside the store.
    place = (folder / (described["kvstore"].get("path") or described["path"])).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise ValueError(f"{place} is outside {folder}")
    return place


def _check_stored(arrays: Iterable[Any], place: pathlib.Path) -> None:
    """Raises ValueError where arrays claim far more bytes than their files have.

    Chunks that are missing read as zeros, so that a description alone could fill all memory.
    """
    claimed = sum(4 * math.prod(array.shape) for array in arrays)
    stored = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    if claimed > _FREE_BYTES + _UNPACKED_A_BYTE * stored:
        raise ValueError(f"arrays of {claimed:,} bytes in files of {stored:,}")


def _shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    token = jnp.ones((1, 1), jnp.int32)

    def init():
        network = Transformer(config)
        return network.init(jax.random.key(0), token, token, token, enable_dropout=False)["params"]

    flat = traverse_util.flatten_dict(jax.eval_shape(init), sep="/")
    return {name: leaf.shape for name, leaf in flat.items()}


def _fitted(
    arrays: dict[str, np.ndarray], config: T5Config, text_rows: int, key: jax.Array, source: str
) -> Params:
    """Returns the tree of `arrays`, its vocabulary extended, after a check of names and shapes."""
    expected = _shapes(config)
    for name in sorted(expected.keys() ^ arrays.keys()):
        wanted, unwanted = (
            (name, "none")
            if name in expected
            else ("no such parameter in this network", name[:_SHOWN])
        )
        raise UserError(
            f"expected {wanted}, found {unwanted} in {source}; pass the size and version of the "
            "file"
        )
    names = [_EMBEDDING] + [_OUTPUT] * (not config.logits_via_embedding)
    for name, part in zip(names, jax.random.split(key, len(names)), strict=True):
        table = arrays[name] if name == _EMBEDDING else arrays[name].T
        if not 0 < text_rows <= min(len(table), config.vocab_size):
            raise UserError(
                f"expected a vocabulary of up to {min(len(table), config.vocab_size)} rows of "
                f"text, found {text_rows}, in {source}; pass the SentencePiece model of the file"
            )
        table = extend_vocabulary(table[:text_rows], config.vocab_size, part)
        arrays[name] = table if name == _EMBEDDING else table.T
    for name, shape in expected.items():
        tensor_files.check_finite(arrays[name], name, source)
        if arrays[name].shape != shape:
            raise UserError(
                f"expected {name} of shape {shape}, found {arrays[name].shape} in {source}; pass "
                "the size and version of the file"
            )
    return traverse_util.unflatten_dict({n: jnp.asarray(v) for n, v in arrays.items()}, sep="/")


def extend_vocabulary(table: np.ndarray, rows: int, key: jax.Array) -> np.ndarray:
    """Adds new rows to `table` float32 [V, D], giving [rows, D].

    A new row is the mean of the old ones plus a tenth of their standard deviation in each column.
    """
    noise = np.asarray(jax.random.normal(key, (rows - len(table), table.shape[1])))
    return np.concatenate([table, table.mean(0) + _SPREAD * table.std(0) * noise])
