"""Keeps the network that learnt to write identifiers beside their table, for training to go on
from it.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import numpy as np
from flax import traverse_util

from core import checksums
from core.errors import UserError
from core.files import load_npz, save_npz

_ARRAYS, _META = "network.npz", "network.json"
_WHAT = "the network that learnt these identifiers"
_REMEDY = "run launch.train with the config of the identifiers again"


def save(folder: str, params: Any, tokens: str) -> None:
    """Writes network.npz and network.json; the JSON, written last, says which tokens it knows.

    Args:
      params: of the network.
      tokens: `Vocabulary.digest`.
    """
    arrays = {
        name: np.asarray(array)
        for name, array in traverse_util.flatten_dict(params, sep="/").items()
    }
    save_npz(os.path.join(folder, _ARRAYS), arrays)
    files = checksums.describe(folder, [_ARRAYS])
    checksums.write_sealed(os.path.join(folder, _META), {"tokens": tokens, "files": files})


def is_saved(folder: str) -> bool:
    """Tells whether `save` has written a folder to its end."""
    return os.path.exists(os.path.join(folder, _META))


def copy(source: str, target: str) -> None:
    """Copies what `save` wrote to another folder, the JSON last."""
    for name in (_ARRAYS, _META):
        shutil.copyfile(os.path.join(source, name), os.path.join(target, name))


def load(folder: str, tokens: str, like: Any) -> Any:
    """Returns the parameters that `save` wrote.

    Args:
      tokens: as of `save`.
      like: the shapes and dtypes of the parameters wanted.

    Raises:
      UserError: files that are damaged, or a network of other tokens or another size.
    """
    meta = checksums.read_sealed(os.path.join(folder, _META), _WHAT, _REMEDY)
    checksums.check(folder, meta.get("files"), _REMEDY)
    if meta.get("tokens") != tokens:
        raise UserError(
            f"expected the network in {folder} to know the tokens {tokens[:12]} of this run, found "
            f"{str(meta.get('tokens'))[:12]}; make the identifiers again with the same "
            "config.vocabulary and data"
        )
    arrays = load_npz(os.path.join(folder, _ARRAYS), _WHAT, _REMEDY)
    wanted = {
        name: (array.shape, array.dtype)
        for name, array in traverse_util.flatten_dict(like, sep="/").items()
    }
    own = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if own != wanted:
        name = sorted({name for name in {**own, **wanted} if own.get(name) != wanted.get(name)})[0]
        shapes = [values[name][0] if name in values else "none" for values in (wanted, own)]
        raise UserError(
            f"expected {name} of shape {shapes[0]} in the network in {folder}, found {shapes[1]}; "
            "make the identifiers again with the same config.model"
        )
    return traverse_util.unflatten_dict(arrays, sep="/")
