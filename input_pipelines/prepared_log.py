"""A prepared log: a folder of .npy files and meta.json, written whole, read memory-mapped."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from core.errors import UserError
from input_pipelines.data_card import describe
from input_pipelines.log import ARRAYS, OPTIONAL_ARRAYS, Log
from input_pipelines.times import UNITS

_META = "meta.json"
_PUBLISHED = "published_"
_FIELDS = ("name", "is_sample", "hash", "bytes", "time_unit", "reading")


def save_log(log: Log, directory: str, origin: dict[str, Any] | None = None) -> None:
    """Writes the log beside `directory` and renames it: a killed save leaves no folder there.

    Args:
      origin: what the log was made from, kept with it (`read_origin`).
    """
    with scratch_folder(directory) as temporary:
        arrays = {name: getattr(log, name) for name in ARRAYS}
        for name in itertools.chain(*OPTIONAL_ARRAYS):
            if getattr(log, name) is not None:
                arrays[name] = getattr(log, name)
        arrays |= {_PUBLISHED + name: array for name, array in log.published.items()}
        for name, array in arrays.items():
            np.save(os.path.join(temporary, f"{name}.npy"), array)
        sizes = {n: os.path.getsize(os.path.join(temporary, f"{n}.npy")) for n in arrays}
        meta = {"name": log.name, "is_sample": log.is_sample, "hash": log.hash}
        meta |= {"time_unit": log.time_unit, "reading": dict(log.reading)}
        meta |= {"origin": origin, "bytes": sizes, "card": describe(log)}
        with open(os.path.join(temporary, _META), "w", encoding="utf-8") as file:
            json.dump(meta, file, indent=2, ensure_ascii=False)
        os.chmod(temporary, 0o755)
        try:
            os.replace(temporary, directory)
        except OSError:
            # Another process prepared the same data first; its folder is as good.
            if not is_prepared(directory):
                raise


@contextlib.contextmanager
def scratch_folder(directory: str) -> Iterator[str]:
    """A folder beside `directory` to work in, removed at the end.

    What killed processes have left of such folders for the same `directory` is removed first.
    """
    parent = os.path.dirname(os.path.abspath(directory))
    os.makedirs(parent, exist_ok=True)
    prefix = f".partial-{os.path.basename(directory)}-"
    _remove_abandoned(parent, prefix)
    temporary = tempfile.mkdtemp(dir=parent, prefix=prefix)
    held = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
    finally:
        os.close(held)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(temporary)


def _remove_abandoned(parent: str, prefix: str) -> None:
    """Removes folders that no living process has locked."""
    for name in os.listdir(parent):
        if not name.startswith(prefix):
            continue
        path = os.path.join(parent, name)
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(descriptor)


def is_prepared(directory: str) -> bool:
    """Whether a prepared log stands there."""
    return os.path.isfile(os.path.join(directory, _META))


def _read_meta(directory: str) -> dict[str, Any]:
    try:
        with open(os.path.join(directory, _META), encoding="utf-8") as file:
            meta = json.load(file)
        if set(_FIELDS) - set(meta) or set(ARRAYS) - set(meta["bytes"]):
            raise KeyError
        if meta["time_unit"] not in UNITS or not isinstance(meta["reading"], dict):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"expected a prepared log with {_META} in {directory}, found {type(error).__name__}; "
            f"remove {directory} and run the command again"
        ) from None
    return meta


def read_origin(directory: str) -> dict[str, Any] | None:
    """The `origin` that a prepared log was saved with. Raises UserError like `load_log`."""
    return _read_meta(directory).get("origin")


def load_log(directory: str) -> Log:
    """Opens a prepared log, memory-mapped.

    Raises:
      UserError: a file is missing or cut short.
    """
    again = f"remove {directory} and run the command again"
    meta = _read_meta(directory)
    bytes_of = meta["bytes"]
    arrays = {}
    for name in bytes_of:
        path = os.path.join(directory, f"{name}.npy")
        size = os.path.getsize(path) if os.path.exists(path) else -1
        if size != bytes_of[name]:
            found = "no such file" if size < 0 else f"{size} bytes"
            raise UserError(f"expected {bytes_of[name]} bytes in {path}, found {found}; {again}")
        # An empty array cannot be mapped.
        # As a plain array over the map: indexing a memmap object costs more.
        arrays[name] = np.asarray(np.load(path, mmap_mode="r") if size > 256 else np.load(path))
    published = {
        n.removeprefix(_PUBLISHED): arrays.pop(n) for n in set(arrays) if n.startswith(_PUBLISHED)
    }
    return Log(
        name=meta["name"],
        is_sample=meta["is_sample"],
        hash=meta["hash"],
        time_unit=meta["time_unit"],
        reading=meta["reading"],
        published=published,
        **arrays,
    )
