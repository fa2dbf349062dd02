"""From raw files to a prepared log, once: later runs open what the first one saved.

A prepared log is the folder DATASET-FINGERPRINT below the cache directory. The fingerprint covers
the raw files' names, sizes and modification times, the reader's version and the settings it heeds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from core.errors import UserError
from input_pipelines import amazon_beauty, csv_log, kuaisar, qilin, qilin_files
from input_pipelines.log import Log, load_log, save_log, validate_log


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """How one data set is read.

    Attributes:
      files: data_dir -> the raw files; UserError where one is missing.
      read: (data_dir, **settings) -> Log; also takes work_dir if `needs_work_dir`.
      settings: the options it heeds.
      version: raised when the same files and options come to give another log.
      needs_work_dir: reads through files of its own, written below the cache directory.
    """

    files: Callable[[str], list[pathlib.Path]]
    read: Callable[..., Log]
    settings: tuple[str, ...] = ()
    version: int = 1
    needs_work_dir: bool = False


READERS: dict[str, Reader] = {
    "qilin": Reader(
        files=qilin_files.raw_files,
        read=qilin.read_qilin,
        settings=("segmenter",),
        needs_work_dir=True,
    ),
    "csv_log": Reader(files=csv_log.raw_files, read=csv_log.read_csv_log, settings=("segmenter",)),
    "amazon_beauty": Reader(
        files=amazon_beauty.raw_files,
        read=amazon_beauty.read_amazon_beauty,
        settings=("query_seed",),
    ),
    "kuaisar": Reader(files=kuaisar.raw_files, read=kuaisar.read_kuaisar),
}


def fingerprint(dataset: str, data_dir: str, settings: Mapping[str, Any]) -> str:
    """16 hex digits of what a prepared log depends on; no file is opened."""
    reader = READERS[dataset]
    files = []
    for path in reader.files(data_dir):
        found = path.stat()
        name = path.relative_to(data_dir).as_posix()
        files.append((name, found.st_size, found.st_mtime_ns))
    content = json.dumps([dataset, reader.version, sorted(settings.items()), files])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def prepare_log(
    dataset: str, data_dir: str, cache_dir: str, options: Mapping[str, Any]
) -> tuple[Log, str]:
    """The log of `dataset`, memory-mapped, and the folder that holds it.

    Nothing is written in `data_dir`; a run killed halfway leaves no folder under the final name.

    Args:
      options: settings of any reader; those that this data set does not heed change nothing.

    Raises:
      UserError: an unknown dataset or option, malformed raw or prepared files, a cache directory
        that cannot be written.
    """
    if dataset not in READERS:
        raise UserError(f"expected a dataset of {', '.join(READERS)}, found {dataset!r}; pass one")
    if not os.path.isdir(data_dir):
        raise UserError(
            f"expected a folder with the raw files of {dataset} at {data_dir}, found "
            f"{'a file' if os.path.exists(data_dir) else 'nothing'}; pass its data_dir"
        )
    known = sorted({name for reader in READERS.values() for name in reader.settings})
    for name in options:
        if name not in known:
            raise UserError(f"expected options among {', '.join(known)}, found {name!r}; drop it")
    reader = READERS[dataset]
    settings = {name: options[name] for name in reader.settings if name in options}
    name = f"{dataset}-{fingerprint(dataset, data_dir, settings)}"
    directory = os.path.join(cache_dir, name)
    if not os.path.isdir(directory):
        try:
            os.makedirs(cache_dir, exist_ok=True)
            work = {"work_dir": cache_dir} if reader.needs_work_dir else {}
            log = reader.read(data_dir, **settings, **work)
            validate_log(log)
            save_log(log, directory)
        except OSError as error:
            raise UserError(
                f"expected to read {data_dir} and to write {directory}, found "
                f"{error.strerror or error}; free space or pass another cache_dir"
            ) from error
    return load_log(directory), directory
