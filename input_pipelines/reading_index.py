"""Keeps beside a large log what reading it begins with, so that a start reads and computes nothing.

Splitting 100 million clicks, finding what each user touched and filling rows with windows takes a
minute, of every start and every process. Of logs with `LEAST` clicks or more all three are saved as
arrays, in the folder of the log (`prepared_log.place_beside`), and memory-mapped later.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping

import numpy as np

from core import checksums
from core.errors import UserError
from core.files import load_npy, scratch_folder, write_npy
from input_pipelines.candidates import TouchedItems, touched_arrays
from input_pipelines.log import Log
from input_pipelines.prepared_log import place_beside
from input_pipelines.splits import Examples, Splits, check_leakage, split_log
from input_pipelines.windows import Keep

LEAST = 5_000_000
# Raised where the same log comes to have other arrays.
_VERSION = 1
_RECORD = "index.json"
_PARTS = ("train", "validation", "test")
_FIELDS = tuple(field.name for field in dataclasses.fields(Examples))


def split_of(
    log: Log,
    name: str,
    max_validation: int,
    directory: str,
    cache_dir: str = "",
    least: int = LEAST,
) -> Splits:
    """Returns `splits.split_log` after `splits.check_leakage`, both done once of a large log.

    Args:
      directory: of the prepared log.
      cache_dir: as of `prepared_log.place_beside`.
      least: clicks of a log that is large.

    Raises:
      UserError: as both; a saved array is damaged, or cannot be written.
    """

    def made() -> Splits:
        parts = split_log(log, name, max_validation=max_validation)
        check_leakage(log, parts)
        return parts

    if len(log.rec_items) < least or name == "published":
        return made()

    def arrays() -> dict[str, np.ndarray]:
        parts = made()
        examples = {
            f"{part}_{field}": getattr(getattr(parts, part), field)
            for part in _PARTS
            for field in _FIELDS
        }
        return examples | {"training_rows": parts.training_rows}

    known = _kept(log, f"split-{name}-{max_validation}", directory, cache_dir, arrays)
    of_parts = [Examples(*(known[f"{part}_{field}"] for field in _FIELDS)) for part in _PARTS]
    return Splits(name, known["training_rows"], *of_parts)


def touched_of(log: Log, directory: str, cache_dir: str = "", least: int = LEAST) -> TouchedItems:
    """Returns the items that each user touched, found once of a large log.

    Args:
      directory, cache_dir, least: as of `split_of`.

    Raises:
      UserError: a saved array is damaged, or cannot be written.
    """
    if len(log.rec_items) < least:
        return TouchedItems(log)
    known = _kept(log, "touched", directory, cache_dir, lambda: touched_arrays(log))
    return TouchedItems(log, known)


def keeper(log: Log, directory: str, cache_dir: str = "", least: int = LEAST) -> Keep | None:
    """Returns what keeps further arrays of a large log, such as its windows; None for small ones.

    Args:
      directory, cache_dir, least: as of `split_of`.
    """
    if len(log.rec_items) < least:
        return None
    return lambda name, make: _kept(log, name, directory, cache_dir, make)


def _kept(
    log: Log,
    name: str,
    directory: str,
    cache_dir: str,
    make: Callable[[], Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Returns saved arrays, memory-mapped, after making them where there are none of this log."""
    folder = place_beside(f"index-{name}-v{_VERSION}", directory, cache_dir)
    remedy = f"remove {folder} and run the command again"
    if not os.path.exists(os.path.join(folder, _RECORD)):
        _make(folder, log, make)
    record = checksums.read_sealed(os.path.join(folder, _RECORD), "an index of a log", remedy)
    if record.get("hash") != log.hash:
        raise UserError(
            f"expected the index of the log {log.hash} in {folder}, found that of "
            f"{record.get('hash')}; {remedy}"
        )
    checksums.check(folder, record.get("files"), remedy)
    return {
        file.removesuffix(".npy"): load_npy(
            os.path.join(folder, file), "an array", remedy, memory_map=True
        )
        for file in record["files"]
    }


def _make(folder: str, log: Log, make: Callable[[], Mapping[str, np.ndarray]]) -> None:
    """Writes the arrays and what belongs to them, whole or not at all."""
    try:
        with scratch_folder(folder) as temporary:
            names = []
            for key, array in make().items():
                names.append(f"{key}.npy")
                with open(os.path.join(temporary, names[-1]), "wb") as file:
                    write_npy(file, array)
            record = {"hash": log.hash, "files": checksums.describe(temporary, names)}
            checksums.write_sealed(os.path.join(temporary, _RECORD), record)
            try:
                os.replace(temporary, folder)
            except OSError:
                # Another process has made the same first.
                if not os.path.exists(os.path.join(folder, _RECORD)):
                    raise
    except OSError as error:
        raise UserError(
            f"expected to write what reading the log begins with into {folder}, found "
            f"{error.strerror or error}; free space or make the folder writable"
        ) from error
