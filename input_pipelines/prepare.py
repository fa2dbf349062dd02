"""Turns raw files into a prepared log, once: later runs open what the first one saved.

A prepared log is a folder: that of `launch.prepare_data --data_dir`, or DATASET-FINGERPRINT below
the cache directory. The fingerprint covers the raw files' names and content, the reader's version,
the settings it heeds and the format of prepared folders.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from core.errors import UserError
from core.files import locked, remove_abandoned, scratch_folder
from input_pipelines.file_bounds import check_lines
from input_pipelines.grown_log import grown
from input_pipelines.log import Log
from input_pipelines.log_checks import validate_log
from input_pipelines.prepared_log import (
    FORMAT,
    check_content,
    count_shards,
    is_prepared,
    load_log,
    read_links,
    read_origin,
    save_grown,
    save_log,
)
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
from input_pipelines.stored_cache import StoredCache

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
    beam_options: str | None = None,
    shards: int = 0,
) -> None:
    """Reads, checks and saves a log; `place` is the option by which the user said where."""
    report("reading", 0.0)
    with _reads_and_writes(raw_dir, directory, place):
        with scratch_folder(directory):
            pass  # what cannot be written to is found out before the reading, not after
        if beam_options is None:
            log = _read(dataset, raw_dir, origin["settings"], report)
        else:
            log = _read_by_beam(dataset, raw_dir, directory, origin["settings"], beam_options)
        report("saving", 0.0)
        save_log(log, directory, origin, shards)
        report("saving", 1.0)


@contextlib.contextmanager
def _reads_and_writes(raw_dir: str, directory: str, place: str) -> Iterator[None]:
    try:
        yield
    except UserError:  # of a write: names its file
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"expected to read {raw_dir} and to write {directory}, found {reason}; free space or "
            f"pass another {place}"
        ) from error


def _read(dataset: str, raw_dir: str, settings: Mapping[str, Any], report: Report) -> Log:
    """Reads and checks the log of raw files."""
    reader = READERS[dataset]
    check_lines(reader.files(raw_dir))
    log = reader.read(raw_dir, **settings, **({"report": report} if reader.reports else {}))
    log = _with_ignored_files(log, raw_dir, reader.files(raw_dir))
    report("checking", 0.0)
    validate_log(log)
    return log


def _check_beam(dataset: str, options: str) -> None:
    """Refuses, before anything is read, what Beam cannot do.

    Raises:
      UserError: another data set than csv_log, Beam is not installed, or knows no such option.
    """
    if dataset != "csv_log":
        raise UserError(
            f"expected --dataset=csv_log for --engine=beam, found {dataset}; prepare it with "
            "--engine=local"
        )
    if importlib.util.find_spec("apache_beam") is None:
        raise UserError(
            "expected the package apache-beam for --engine=beam, found it missing; run "
            "`pip install -e '.[beam]'` or pass --engine=local"
        )
    from input_pipelines import beam_engine

    beam_engine.options_of(options)


def _read_by_beam(
    dataset: str, raw_dir: str, directory: str, settings: Mapping[str, Any], options: str
) -> Log:
    """Reads and checks the log of raw files by a Beam pipeline."""
    from input_pipelines import beam_engine

    files = READERS[dataset].files(raw_dir)
    check_lines(files)
    with scratch_folder(f"{directory}-beam") as folder:
        log = beam_engine.read_csv_log(raw_dir, folder, beam_engine.options_of(options), **settings)
    log = _with_ignored_files(log, raw_dir, files)
    validate_log(log)
    return log


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
    shared: StoredCache | None = None,
) -> tuple[Log, str]:
    """Returns the log of `dataset`, memory-mapped, and the folder that holds it.

    Nothing is written in `data_dir`; a run killed halfway leaves no folder under the final name.

    Args:
      data_dir: the raw files, or a folder that `prepare_into` has written: it is used as it is.
      options: settings of any reader; settings that this data set does not heed change nothing.
      report: told what is being done and the share of it done.
      shared: where others may have prepared the same, and find what is prepared here.

    Raises:
      UserError: an unknown dataset or option, malformed raw or prepared files, a folder prepared
        for another dataset, with other settings or by another version, a cache directory that
        cannot be written.
    """
    settings = _settings(dataset, data_dir, options)
    remove_abandoned(cache_dir)
    if is_prepared(data_dir):
        _check_origin(dataset, data_dir, settings)
        remove_abandoned(data_dir)
        return load_log(data_dir), data_dir
    origin = _origin(dataset, data_dir, settings, cache_dir)
    directory = os.path.join(cache_dir, f"{dataset}-{origin['fingerprint']}")
    if not os.path.isdir(directory) and not (shared and shared.fetch(directory)):
        _prepare(dataset, data_dir, directory, origin, report, "cache_dir")
        if shared:
            shared.send(directory)
    remove_abandoned(directory)
    return load_log(directory), directory


def _check_origin(dataset: str, data_dir: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a folder was prepared from.

    Raises:
      UserError: another data set, other settings, another version of the reader.
    """
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
    return origin


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
    dataset: str,
    raw_dir: str,
    data_dir: str,
    options: Mapping[str, Any],
    report: Report = silent,
    beam_options: str | None = None,
    shards: int = 0,
) -> Log:
    """Prepares the raw files into the folder `data_dir`, or opens what an earlier call left there.

    The folder is written whole or not at all: the next call begins a killed one anew.

    Args:
      options, report: as in `prepare_log`.
      beam_options: of the Beam pipeline that reads the files, with the same result; None reads them
        here.
      shards: that the events are cut into by user (`sharded_log`); 0 keeps them in one piece.

    Raises:
      UserError: as `prepare_log`; `data_dir` holds something else.
    """
    settings = _settings(dataset, raw_dir, options)
    if beam_options is not None:
        _check_beam(dataset, beam_options)
    origin = _origin(dataset, raw_dir, settings)
    data_dir = os.path.abspath(data_dir)
    if is_prepared(data_dir):
        if (read_origin(data_dir) or {}).get("fingerprint") != origin["fingerprint"]:
            raise UserError(
                f"expected nothing or the same data at {data_dir}, found a log prepared from other "
                "files or settings; remove it or pass another data_dir"
            )
        if (there := count_shards(data_dir)) != shards:
            raise UserError(
                f"expected nothing or a log in {_pieces(shards)} at {data_dir}, found the same "
                f"data in {_pieces(there)}; remove it or pass another data_dir"
            )
    elif os.path.lexists(data_dir) and not (os.path.isdir(data_dir) and not os.listdir(data_dir)):
        raise UserError(
            f"expected nothing at {data_dir} yet, found something else than a prepared log; pass "
            "another data_dir"
        )
    else:
        _prepare(dataset, raw_dir, data_dir, origin, report, "data_dir", beam_options, shards)
    return load_log(data_dir)


def _pieces(shards: int) -> str:
    return "one piece" if not shards else f"{shards} shard{'s' * (shards > 1)}"


def append_into(
    dataset: str, raw_dir: str, data_dir: str, options: Mapping[str, Any], report: Report = silent
) -> Log:
    """Joins the events of further raw files to a prepared log (`grown_log`), which it replaces.

    The log is replaced whole or not at all. What the latest call has joined is not joined again:
    the same command may be repeated.

    Args:
      options, report: as in `prepare_log`.

    Raises:
      UserError: as `prepare_log`; `data_dir` is no prepared log, or the files have joined it before
        its latest ones, or do not go with it.
    """
    settings = _settings(dataset, raw_dir, options)
    data_dir = os.path.abspath(data_dir)
    origin = _check_origin(dataset, data_dir, settings)
    if shards := count_shards(data_dir):
        raise UserError(
            f"expected a log in one piece to append to in {data_dir}, found {_pieces(shards)}; "
            "prepare all of it anew, or keep one without --shards"
        )
    with _reads_and_writes(raw_dir, data_dir, "data_dir"), locked(_lock(data_dir)):
        links, new = read_links(data_dir), fingerprint(dataset, raw_dir, settings)
        places = [number for number, link in enumerate(links) if link["fingerprint"] == new]
        if places and places[-1] == len(links) - 1 > 0:
            return load_log(data_dir)
        if places:
            raise UserError(
                f"expected files that are not in {data_dir} yet, found those of its part "
                f"{places[-1] + 1} of {len(links)} in {raw_dir}; pass the files of a new day"
            )
        report("reading", 0.0)
        day = _read(dataset, raw_dir, settings, report)
        report("joining", 0.0)
        before = load_log(data_dir)
        log = grown(before, day)
        chained = f"{origin['fingerprint']}+{new}".encode()
        origin = origin | {"fingerprint": hashlib.sha256(chained).hexdigest()[:16]}
        link = {"hash": log.hash, "joined": day.hash, "fingerprint": new}
        report("saving", 0.0)
        save_grown(log, before, data_dir, origin, link)
        report("saving", 1.0)
    return load_log(data_dir)


def _lock(data_dir: str) -> str:
    return os.path.join(data_dir, ".append.lock")


def validate_prepared(data_dir: str) -> Log:
    """Opens a prepared folder and checks its schema and its hash.

    Raises:
      UserError: the folder holds no prepared log, is cut short, breaks the schema or is not what
        was saved.
    """
    log = load_log(data_dir)
    validate_log(log)
    check_content(log, data_dir)
    return log
