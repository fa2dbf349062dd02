"""Saves a prepared log as .npy files and meta.json, written whole, and reads it memory-mapped.

meta.json holds the size and the checksum of every array's file, and its own.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np

from core import checksums
from core.errors import UserError
from core.files import load_npy, read_json, scratch_folder
from input_pipelines.data_card import describe
from input_pipelines.log import ARRAYS, OPTIONAL_ARRAYS, Log
from input_pipelines.times import UNITS

# Raised where folders come to hold something else: 2 since every array has a checksum.
FORMAT = 2
_META = "meta.json"
_PUBLISHED = "published_"
_FIELDS = ("name", "is_sample", "hash", "files", "time_unit", "reading")


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
        files = checksums.describe(temporary, [f"{name}.npy" for name in arrays])
        meta = {"format": FORMAT, "name": log.name, "is_sample": log.is_sample, "hash": log.hash}
        meta |= {"time_unit": log.time_unit, "reading": dict(log.reading)}
        meta |= {"origin": origin, "files": files, "card": describe(log)}
        checksums.write_sealed(os.path.join(temporary, _META), meta)
        try:
            os.replace(temporary, directory)
        except OSError:
            # Another process prepared the same data first; its folder is as good.
            if not is_prepared(directory):
                raise


def is_prepared(directory: str) -> bool:
    """Tells whether a folder holds a prepared log."""
    return os.path.isfile(os.path.join(directory, _META))


def _again(directory: str) -> str:
    return f"remove {directory} and run the command again"


def _read_meta(directory: str) -> dict[str, Any]:
    path, what = os.path.join(directory, _META), "a prepared log"
    if not is_prepared(directory):
        raise UserError(
            f"expected a prepared log with {_META} in {directory}, found none; pass a folder that "
            "launch.prepare_data has written"
        )
    checksums.check_readable(path)
    meta = read_json(path, what, _again(directory))
    if meta.get("format") != FORMAT:
        raise UserError(
            f"expected a log prepared in format {FORMAT} in {directory}, found "
            f"{meta.get('format', 1)!r}; {_again(directory)}"
        )
    meta = checksums.unsealed(meta, path, what, _again(directory))
    known = meta.get("time_unit") in UNITS and isinstance(meta.get("reading"), dict)
    if set(_FIELDS) - set(meta) or not known:
        raise UserError(
            f"expected a log's {', '.join(_FIELDS)} in {path}, found something else; "
            f"{_again(directory)}"
        )
    return meta


def read_origin(directory: str) -> dict[str, Any] | None:
    """Returns the `origin` that a prepared log was saved with. Raises UserError like `load_log`."""
    return _read_meta(directory).get("origin")


def load_log(directory: str) -> Log:
    """Opens a prepared log, memory-mapped, after checking every array's checksum.

    For the check every process reads the whole log: the disk or memory of each host is its own,
    and what one process has read, the others of its host find in memory.

    Raises:
      UserError: a file is missing, cut short, or not what was saved; another format.
    """
    again = _again(directory)
    meta = _read_meta(directory)
    checksums.check(directory, meta["files"], again)
    arrays = {}
    for file in meta["files"]:
        path = os.path.join(directory, file)
        arrays[file.removesuffix(".npy")] = load_npy(path, "an array", again, memory_map=True)
    published = {
        n.removeprefix(_PUBLISHED): arrays.pop(n) for n in set(arrays) if n.startswith(_PUBLISHED)
    }
    if set(ARRAYS) - set(arrays) or set(arrays) - {*ARRAYS, *itertools.chain(*OPTIONAL_ARRAYS)}:
        raise UserError(f"expected the arrays of a log in {directory}, found others; {again}")
    return Log(
        name=meta["name"],
        is_sample=meta["is_sample"],
        hash=meta["hash"],
        time_unit=meta["time_unit"],
        reading=meta["reading"],
        published=published,
        **arrays,
    )


def place_beside(name: str, directory: str, cache_dir: str) -> str:
    """Returns the path of a file made from a prepared log, such as candidate lists.

    The file lies in the log's folder, for all who use the log. Where that folder cannot be written
    (a read-only mount, another user's folder) and does not hold the file, it lies in a folder of
    the cache directory that belongs to this very log.

    Args:
      name: of a file or folder.
      directory: of the prepared log.
      cache_dir: made on first use; '' for none.

    Raises:
      UserError: neither folder can be written.
    """
    inside = os.path.join(directory, name)
    meta = os.path.join(directory, _META)
    writable = os.access(directory, os.W_OK | os.X_OK)
    if writable or os.path.exists(inside) or not cache_dir or not os.path.exists(meta):
        return inside
    apart = os.path.join(cache_dir, f"beside-{checksums.of_file(meta)}")
    try:
        os.makedirs(apart, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"expected to write {name} into {directory}, which cannot be written, or into "
            f"{cache_dir}, found {error.strerror or error}; pass another cache_dir"
        ) from None
    return os.path.join(apart, name)
