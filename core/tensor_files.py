"""Reads Hugging Face's checkpoints: safetensors in one file, or in shards that an index names.

A checkpoint is data of others: what it holds is checked before anything is trained from it.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from core.errors import UserError
from core.files import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# As safetensors names them; float8, integers and packed formats are quantised weights, whose scales
# are in other tensors.
_FLOATS = ("F64", "F32", "F16", "BF16")
# Values that are looked at together.
_LOOKED_AT = 2**24
# More than any network has: what a config.json says is counted and made shapes of before any tensor
# can contradict it.
_LARGEST, _MOST_LAYERS, _LAYERS = 2**31 - 1, 10_000, "num_hidden_layers"


class Tensors:
    """Reads the tensors of an open checkpoint by their names.

    Attributes:
      path: of the checkpoint, for messages.
    """

    def __init__(self, path: pathlib.Path, files: dict[str, Any]):
        self.path, self._files = path, files

    def names(self) -> set[str]:
        """Returns the names of all tensors."""
        return set(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def part(self, name: str) -> Any:
        """Returns a tensor that is read where it is sliced, with `get_shape`.

        Raises:
          UserError: its values are no float16, bfloat16, float32 or float64.
        """
        part = self._files[name].get_slice(name)
        if part.get_dtype() not in _FLOATS:
            raise UserError(
                f"expected weights of {', '.join(_FLOATS)}, found {name} of {part.get_dtype()} in "
                f"{self.path}; pass a checkpoint that is not quantised"
            )
        return part

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor; raises UserError as `part`."""
        return tuple(self.part(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor as float32.

        Raises:
          UserError: as `part`, or a value is NaN or infinite.
        """
        self.part(name)
        array = np.asarray(self._files[name].get_tensor(name), np.float32)
        check_finite(array, name, self.path)
        return array


def check_finite(array: np.ndarray, name: str, source: Any) -> None:
    """Raises UserError where an array of a checkpoint has a value that is NaN or infinite."""
    flat = np.asarray(array).reshape(-1)
    for start in range(0, flat.size, _LOOKED_AT):
        broken = ~np.isfinite(flat[start : start + _LOOKED_AT])
        if broken.any():
            raise UserError(
                f"expected finite weights, found {flat[start + int(broken.argmax())]} in {name} of "
                f"{source}; download the checkpoint again, or pass another"
            )


def sizes_of(values: Mapping[str, Any], names: Mapping[str, str], file: Any) -> dict[str, int]:
    """Returns the sizes of a network that its config.json tells, by our names.

    Args:
      values: of config.json.
      names: theirs by ours.
      file: its path, for messages.

    Raises:
      UserError: one is missing, no whole number, below 1 or larger than any network's.
    """
    sizes = {}
    for ours, theirs in names.items():
        size, most = values.get(theirs), _MOST_LAYERS if theirs == _LAYERS else _LARGEST
        if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= most:
            raise UserError(
                f"expected {theirs} of a whole number from 1 to {most:,} in {file}, found "
                f"{size!r:.60}; download the whole folder again"
            )
        sizes[ours] = size
    return sizes


def is_there(folder: pathlib.Path) -> bool:
    """Tells whether a folder holds the safetensors of a checkpoint, in one file or several."""
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


@contextlib.contextmanager
def opened(path: str | pathlib.Path) -> Iterator[Tensors]:
    """Opens a file of safetensors, or a folder with `SINGLE` or with `INDEX` and its shards.

    Raises:
      UserError: a file is missing or none of safetensors; the index is none, names a file outside
        its folder, or differs from what its shards hold.
    """
    path = pathlib.Path(path)
    index = _index(path) if path.is_dir() else None
    if index is None:
        files = [path / SINGLE if path.is_dir() else path]
    else:
        files = [path / name for name in sorted(set(index.values()))]
    with contextlib.ExitStack() as stack:
        owners: dict[str, pathlib.Path] = {}
        files_of: dict[str, Any] = {}
        for file in files:
            tensors = stack.enter_context(_file(file))
            for name in tensors.keys():  # noqa: SIM118
                if name in owners:
                    raise UserError(
                        f"expected each tensor in one file, found {name} in {owners[name]} and in "
                        f"{file}; download the checkpoint again"
                    )
                owners[name], files_of[name] = file, tensors
        if index is not None:
            _check_index(path, index, owners)
        yield Tensors(path, files_of)


def _index(folder: pathlib.Path) -> dict[str, str] | None:
    """Reads from an index which shard holds each tensor; None where there is no index."""
    path = folder / INDEX
    if not path.exists():
        return None
    again = "download the checkpoint again"
    shards = read_json(str(path), "the index of a checkpoint", again).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"expected a weight_map in {path}, found none; {again}")
    for name, shard in shards.items():
        if not isinstance(shard, str) or shard != pathlib.PurePath(shard).name or "\\" in shard:
            raise UserError(
                f"expected a file's name beside {path} for {name}, found {str(shard)[:80]!r}; "
                f"{again}"
            )
    return shards


@contextlib.contextmanager
def _file(file: pathlib.Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise UserError(f"expected a file of safetensors, found no {file}; correct the path")
    try:
        # Through JAX, whose arrays know bfloat16.
        tensors = safe_open(file, framework="flax")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"expected a file of safetensors, found {file}, which is none ({error}); download it "
            "again"
        ) from error
    with tensors:
        yield tensors


def _check_index(
    folder: pathlib.Path, index: dict[str, str], owners: dict[str, pathlib.Path]
) -> None:
    told = {name: folder / shard for name, shard in index.items()}
    for name in sorted(told.keys() | owners.keys()):
        if told.get(name) != owners.get(name):
            files = [file.name if file else "none" for file in (told.get(name), owners.get(name))]
            raise UserError(
                f"expected {name} in {files[0]}, as {folder / INDEX} says, found it in {files[1]}; "
                "download the checkpoint again"
            )
