"""Turns raw files into a prepared log, once: later runs open what the first one saved.

A prepared log is a folder: that of `launch.prepare_data --data_dir`, or DATASET-FINGERPRINT below
the cache directory. The fingerprint covers the raw files' names and content, the reader's version,
the settings it heeds and the format of prepared folders.
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
from core.files import remove_abandoned, scratch_folder
from input_pipelines.file_bounds import check_lines
from input_pipelines.log import Log, content_hash
from input_pipelines.log_checks import validate_log
from input_pipelines.prepared_log import FORMAT, is_prepared, load_log, read_origin, save_log
from input_pipelines.raw_hashes import RawHashes
from input_pipelines.readers import (
    amazon_beauty,
    amazon_raw,
    csv_log,
    kuaisar,
    qilin,
    qilin_files,
    trivago,
    unisar_pickles,
)
from input_pipelines.readers.csv_blocks import Report, silent

_NAMED_FILES = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """Says how one data set is read.

    Attributes:
      files: data_dir -> the raw files; UserError where one is missing.
      read: (data_dir, **settings) -> Log.
      settings: the options it heeds.
      of_files: the settings among these that only say how raw files are read.
      version: raised when the same files and options come to give another log.
      reports: whether `read` takes a `report` of its progress.
    """

    files: Callable[[str], list[pathlib.Path]]
    read: Callable[..., Log]
    settings: tuple[str, ...] = ()
    of_files: tuple[str, ...] = ()
    version: int = 1
    reports: bool = False


READERS: dict[str, Reader] = {
    "qilin": Reader(
        files=qilin_files.raw_files,
        read=qilin.read_qilin,
        settings=("segmenter",),
        version=5,  # words with their marks, profiles without NaN
    ),
    "csv_log": Reader(
        files=csv_log.raw_files,
        read=csv_log.read_csv_log,
        settings=("segmenter", "columns", "time_unit"),
        of_files=("columns", "time_unit"),
        version=3,  # words with their marks, ids of parquet, the unit of times
    ),
    "amazon_beauty": Reader(
        files=amazon_beauty.raw_files,
        read=amazon_beauty.read_amazon_beauty,
        version=4,  # lines end in newlines alone
    ),
    "amazon_raw": Reader(
        files=amazon_raw.raw_files,
        read=amazon_raw.read_amazon_raw,
        version=3,  # lines end in newlines alone, ids of any kind by one rule
        reports=True,
    ),
    "trivago": Reader(
        files=trivago.raw_files,
        read=trivago.read_trivago,
        settings=("segmenter",),
        version=2,  # words with their marks
    ),
    "unisar_pickles": Reader(
        files=unisar_pickles.raw_files,
        read=unisar_pickles.read_unisar,
        version=2,  # no session without words and clicks
        reports=True,
    ),
    "kuaisar": Reader(files=kuaisar.raw_files, read=kuaisar.read_kuaisar, reports=True),
}


def fingerprint(
    dataset: str, data_dir: str, settings: Mapping[str, Any], cache_dir: str = ""
) -> str:
    """Returns 16 hex digits over what a prepared log depends on.

    Args:
      cache_dir: where the hashes of the raw files are remembered (`raw_hashes`); '' reads them all.

    Raises:
      UserError: a raw file is missing or cannot be read.
    """
    reader, hashes = READERS[dataset], RawHashes(cache_dir)
    files = [
        (path.relative_to(data_dir).as_posix(), hashes.of(path)) for path in reader.files(data_dir)
    ]
    hashes.save()
    content = json.dumps([FORMAT, dataset, reader.version, sorted(settings.items()), files])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _settings(dataset: str, raw_dir: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that the data set heeds.

    Raises:
      UserError: an unknown dataset or option, no such folder.
    """
    if dataset not in READERS:
        raise UserError(f"expected a dataset of {', '.join(READERS)}, found {dataset!r}; pass one")
    if not os.path.isdir(raw_dir):
        raise UserError(
            f"expected a folder with the raw files of {dataset} at {raw_dir}, found "
            f"{'a file' if os.path.exists(raw_dir) else 'nothing'}; pass its data_dir"
        )
    known = sorted({name for reader in READERS.values() for name in reader.settings})
    for name in options:
        if name not in known:
            raise UserError(f"expected options among {', '.join(known)}, found {name!r}; drop it")
    return {name: options[name] for name in READERS[dataset].settings if name in options}


def _prepare(
    dataset: str,
    raw_dir: str,
    directory: str,
    origin: dict[str, Any],
    report: Report,
    place: str,
) -> None:
    """Reads, checks and saves a log; `place` is the option by which the user said where."""
    reader = READERS[dataset]
    settings = origin["settings"] | ({"report": report} if reader.reports else {})
    report("reading", 0.0)
    try:
        check_lines(reader.files(raw_dir))
        with scratch_folder(directory):
            pass  # what cannot be written to is found out before the reading, not after
        log = reader.read(raw_dir, **settings)
        log = _with_ignored_files(log, raw_dir, reader.files(raw_dir))
        report("checking", 0.0)
        validate_log(log)
        report("saving", 0.0)
        save_log(log, directory, origin)
        report("saving", 1.0)
    except OSError as error:
        # NumPy's error of a write that did not fit has no strerror.
        reason = error.strerror or f"a write cut short ({error})"
        raise UserError(
            f"expected to read {raw_dir} and to write {directory}, found {reason}; free space or "
            f"pass another {place}"
        ) from error


def _with_ignored_files(log: Log, raw_dir: str, read: list[pathlib.Path]) -> Log:
    """Notes which raw files and folders were not read, for the data card."""
    root = pathlib.Path(raw_dir)
    used = {path.relative_to(root).parts[0] for path in read}
    ignored = [name for name in sorted(os.listdir(root)) if name not in used and name[0] != "."]
    if not ignored:
        return log
    more = [f"and {len(ignored) - _NAMED_FILES} more"] * (len(ignored) > _NAMED_FILES)
    noted = {"files_ignored": ignored[:_NAMED_FILES] + more}
    return dataclasses.replace(log, reading={**log.reading, **noted})


def prepare_log(
    dataset: str,
    data_dir: str,
    cache_dir: str,
    options: Mapping[str, Any],
    report: Report = silent,
) -> tuple[Log, str]:
    """Returns the log of `dataset`, memory-mapped, and the folder that holds it.

    Nothing is written in `data_dir`; a run killed halfway leaves no folder under the final name.

    Args:
      data_dir: the raw files, or a folder that `prepare_into` has written: it is used as it is.
      options: settings of any reader; settings that this data set does not heed change nothing.
      report: told what is being done and the share of it done.

    Raises:
      UserError: an unknown dataset or option, malformed raw or prepared files, a folder prepared
        for another dataset, with other settings or by another version, a cache directory that
        cannot be written.
    """
    settings = _settings(dataset, data_dir, options)
    remove_abandoned(cache_dir)
    if is_prepared(data_dir):
        origin = read_origin(data_dir) or {}
        of_files = READERS[dataset].of_files
        given, wanted = (
            {k: v for k, v in some.items() if k not in of_files}
            for some in (origin.get("settings") or {}, settings)
        )
        saved = {"dataset": origin.get("dataset"), "settings": given}
        for key, value in {"dataset": dataset, "settings": wanted}.items():
            if saved[key] != value:
                raise UserError(
                    f"expected {data_dir} to be prepared with {key} {value}, found {saved[key]}; "
                    "change the config or pass another data_dir"
                )
        version = READERS[dataset].version
        if origin.get("version") != version:
            raise UserError(
                f"expected {data_dir} to be prepared by version {version} of {dataset}'s reader, "
                f"found {origin.get('version')}; prepare it again"
            )
        remove_abandoned(data_dir)
        return load_log(data_dir), data_dir
    origin = _origin(dataset, data_dir, settings, cache_dir)
    directory = os.path.join(cache_dir, f"{dataset}-{origin['fingerprint']}")
    if not os.path.isdir(directory):
        _prepare(dataset, data_dir, directory, origin, report, "cache_dir")
    remove_abandoned(directory)
    return load_log(directory), directory


def _origin(
    dataset: str, raw_dir: str, settings: dict[str, Any], cache_dir: str = ""
) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "settings": settings,
        "version": READERS[dataset].version,
        "fingerprint": fingerprint(dataset, raw_dir, settings, cache_dir),
    }


def prepare_into(
    dataset: str, raw_dir: str, data_dir: str, options: Mapping[str, Any], report: Report = silent
) -> Log:
    """Prepares the raw files into the folder `data_dir`, or opens what an earlier call left there.

    The folder is written whole or not at all: the next call begins a killed one anew.

    Args:
      options, report: as in `prepare_log`.

    Raises:
      UserError: as `prepare_log`; `data_dir` holds something else.
    """
    settings = _settings(dataset, raw_dir, options)
    origin = _origin(dataset, raw_dir, settings)
    data_dir = os.path.abspath(data_dir)
    if is_prepared(data_dir):
        if (read_origin(data_dir) or {}).get("fingerprint") != origin["fingerprint"]:
            raise UserError(
                f"expected nothing or the same data at {data_dir}, found a log prepared from other "
                "files or settings; remove it or pass another data_dir"
            )
    elif os.path.lexists(data_dir) and not (os.path.isdir(data_dir) and not os.listdir(data_dir)):
        raise UserError(
            f"expected nothing at {data_dir} yet, found something else than a prepared log; pass "
            "another data_dir"
        )
    else:
        _prepare(dataset, raw_dir, data_dir, origin, report, "data_dir")
    return load_log(data_dir)


def validate_prepared(data_dir: str) -> Log:
    """Opens a prepared folder and checks its schema and its hash.

    Raises:
      UserError: the folder holds no prepared log, is cut short, breaks the schema or is not what
        was saved.
    """
    log = load_log(data_dir)
    validate_log(log)
    actual = content_hash(log)
    if actual != log.hash:
        raise UserError(
            f"expected the content hash {log.hash} of {data_dir}, found {actual}; prepare it again"
        )
    return log
