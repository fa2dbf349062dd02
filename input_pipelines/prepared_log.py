"""Saves a prepared log as .npy files and meta.json, written whole, and reads it memory-mapped.

meta.json holds the size and the checksum of every array's file, and its own. A log that has grown
(`save_grown`) has its new arrays in files with a number, and in meta.json its links: the hash and
the raw files' fingerprint of all that has joined it. A log in shards (`sharded_log`) has its events
in a folder a shard, and in meta.json their index.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import Any

from core import checksums
from core.errors import UserError
from core.files import load_npy, read_json, save_npy, scratch_folder, write_npy
from input_pipelines import sharded_log
from input_pipelines.data_card import describe
from input_pipelines.log import ARRAYS, OPTIONAL_ARRAYS, Log, content_hash
from input_pipelines.times import UNITS

# Raised where folders come to hold something else: 2 since every array has a checksum.
FORMAT = 2
_META = "meta.json"
_PUBLISHED = "published_"
_FIELDS = ("name", "is_sample", "hash", "files", "time_unit", "reading")


def save_log(
    log: Log, directory: str, origin: dict[str, Any] | None = None, shards: int = 0
) -> None:
    """Writes the log beside `directory` and renames it: a killed save leaves no folder there.

    Args:
      origin: what the log was made from, kept with it (`read_origin`).
      shards: that its events are cut into by user; 0 keeps them in one piece.
    """
    with scratch_folder(directory) as temporary:
        arrays = {name: getattr(log, name) for name in ARRAYS}
        for name in itertools.chain(*OPTIONAL_ARRAYS):
            if getattr(log, name) is not None:
                arrays[name] = getattr(log, name)
        arrays |= {_PUBLISHED + name: array for name, array in log.published.items()}
        index = sharded_log.save(log, temporary, shards) if shards else None
        arrays = {n: a for n, a in arrays.items() if n not in sharded_log.arrays_of(index)}
        for name, array in arrays.items():
            with open(os.path.join(temporary, f"{name}.npy"), "wb") as file:
                write_npy(file, array)
        files = checksums.describe(temporary, [f"{name}.npy" for name in arrays])
        meta = {"format": FORMAT, "name": log.name, "is_sample": log.is_sample, "hash": log.hash}
        meta |= {"time_unit": log.time_unit, "reading": dict(log.reading)}
        meta |= {"origin": origin, "files": files, "card": describe(log)}
        meta |= {} if index is None else {"shards": index}
        checksums.write_sealed(os.path.join(temporary, _META), meta)
        try:
            os.replace(temporary, directory)
        except OSError:
            # Another process prepared the same data first; its folder is as good.
            if not is_prepared(directory):
                raise


def save_grown(
    log: Log, before: Log, directory: str, origin: dict[str, Any], link: dict[str, Any]
) -> None:
    """Puts a log in the place of the one that it has grown from, at once or not at all.

    The arrays that have changed are written beside those that are there, then meta.json takes the
    place of the old one, and the old arrays go. A process that has them open reads on.

    Args:
      before: the log of the folder, as `load_log` has opened it.
      link: what has joined it, kept with it (`read_links`).

    Raises:
      WriteError: the disk is full, or the folder cannot be written; what was there stays.
    """
    meta = _read_meta(directory)
    links = [*_links(meta), link]
    arrays = {name: getattr(log, name) for name in (*ARRAYS, *itertools.chain(*OPTIONAL_ARRAYS))}
    changed = {
        f"{name}-{len(links)}.npy": array
        for name, array in arrays.items()
        if array is not None and array is not getattr(before, name)
    }
    stay = {file: of for file, of in meta["files"].items() if _array(file) not in
            {_array(name) for name in changed}}  # fmt: skip
    try:
        for file, array in changed.items():
            save_npy(os.path.join(directory, file), array)
        files = stay | checksums.describe(directory, changed)
        meta |= {"hash": log.hash, "reading": dict(log.reading), "origin": origin, "files": files}
        meta |= {"links": links, "content": content_hash(log), "card": describe(log)}
        checksums.write_sealed(os.path.join(directory, _META), meta)
    except BaseException:
        for file in changed:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(directory, file))
        raise
    for file in os.listdir(directory):
        # Of killed runs too; lists of candidates have other names.
        if file.endswith(".npy") and _array(file) in arrays and file not in files:
            os.unlink(os.path.join(directory, file))


def _array(file: str) -> str:
    """Returns the name of the array that a file holds."""
    return file.removesuffix(".npy").partition("-")[0]


def _links(meta: dict[str, Any]) -> list[dict[str, Any]]:
    first = {"hash": meta["hash"], "fingerprint": (meta["origin"] or {}).get("fingerprint")}
    return meta.get("links") or [first]


def read_links(directory: str) -> list[dict[str, Any]]:
    """Returns what has joined a prepared log, the first part and every day, oldest first.

    Each has the `hash` that the log then had and the `fingerprint` of its raw files.
    """
    return _links(_read_meta(directory))


def check_content(log: Log, directory: str) -> None:
    """Holds a log's events and names to the hash that its folder records.

    Raises:
      UserError: they are others.
    """
    wanted, actual = _read_meta(directory).get("content", log.hash), content_hash(log)
    if actual != wanted:
        raise UserError(
            f"expected the content hash {wanted} of {directory}, found {actual}; prepare it again"
        )


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


def count_shards(directory: str) -> int:
    """Returns how many shards a prepared log is in; 0 for one in one piece."""
    return (_read_meta(directory).get("shards") or {"count": 0})["count"]


def read_origin(directory: str) -> dict[str, Any] | None:
    """Returns the `origin` that a prepared log was saved with. Raises UserError like `load_log`."""
    return _read_meta(directory).get("origin")


def load_log(directory: str) -> Log:
    """Opens a prepared log, memory-mapped, after checking every array's checksum.

    For the check every process reads the whole log: the disk or memory of each host is its own,
    and what one process has read, the others of its host find in memory. Of a log in shards it
    reads what is not in them; a shard's files are read when their rows are first looked up.

    Raises:
      UserError: a file is missing, cut short, or not what was saved; another format.
    """
    again = _again(directory)
    meta = _read_meta(directory)
    checksums.check(directory, meta["files"], again)
    arrays: dict[str, Any] = {}
    for file in meta["files"]:
        path = os.path.join(directory, file)
        arrays[_array(file)] = load_npy(path, "an array", again, memory_map=True)
    published = {
        n.removeprefix(_PUBLISHED): arrays.pop(n) for n in set(arrays) if n.startswith(_PUBLISHED)
    }
    if meta.get("shards"):
        arrays |= sharded_log.opened(meta["shards"], meta["hash"], directory, again)
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
    meta = os.path.join(directory, _META)
    prepared = os.path.exists(meta)
    writable = os.access(directory, os.W_OK | os.X_OK)
    inside = os.path.join(directory, name)
    if prepared and (links := read_links(directory))[1:]:
        inside = os.path.join(directory, f"of-{links[-1]['hash']}", name)
        if writable:
            os.makedirs(os.path.dirname(inside), exist_ok=True)
    if writable or os.path.exists(inside) or not cache_dir or not prepared:
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
