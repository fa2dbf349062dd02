"""Cuts a log by user into shards, folders that are checked and mapped when they are first read.

The names of users, items and words, where each user's events begin, texts and facts stay whole; the
events go into `shard-I-of-N` by their users. Shard I holds the rows of consecutive users: every
array of events is the shards' arrays end to end, so that a row has one number whatever N is.
`shard.json` says which shard of which log a folder holds, with the size and the checksum of every
file; what is opened later is held to what was known at the start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from core import checksums
from core.errors import UserError
from core.files import load_npy, write_npy
from input_pipelines.log import Log
from input_pipelines.sharded_array import ShardedArray

_RECORD = "shard.json"
_OF_CLICKS = ("rec_items", "rec_times")
_OF_SEARCHES = ("search_times", "search_begins", "search_places")
# The ends of each search's values, one more than searches, and the values.
_RAGGED = (
    ("word_offsets", "word_ids"),
    ("click_offsets", "click_items"),
    ("unclicked_offsets", "unclicked_items"),
)


def folder_of(number: int, count: int) -> str:
    """Returns the name of a shard's folder."""
    return f"shard-{number:05d}-of-{count:05d}"


def cut(log: Log, count: int) -> dict[str, list[int]]:
    """Returns where the shards of a log begin, with about as many events in each.

    A user's events are in one shard. Shards are empty where there are more than users.

    Returns:
      by array of events the first row of every shard, and the number of rows, [count + 1].
    """
    clicks, searches = np.asarray(log.rec_offsets), np.asarray(log.search_offsets)
    events = clicks + searches
    wanted = np.arange(count + 1) * (int(events[-1]) / count)
    users = np.searchsorted(events, wanted)
    users[0], users[-1] = 0, len(events) - 1
    starts = {name: clicks[users] for name in _OF_CLICKS}
    first_searches = searches[users]
    starts |= {name: first_searches for name in _OF_SEARCHES}
    for ends, values in _RAGGED:
        if getattr(log, ends) is not None:
            starts[values] = getattr(log, ends)[first_searches]
            # The last shard has the end of the last search too.
            starts[ends] = first_searches + (np.arange(count + 1) == count)
    return {name: rows.tolist() for name, rows in starts.items() if getattr(log, name) is not None}


def save(log: Log, folder: str, count: int) -> dict[str, Any]:
    """Writes the shards of a log into a folder.

    Returns:
      the index of the shards, which `opened` takes.
    """
    starts, seals = cut(log, count), []
    for number in range(count):
        shard = os.path.join(folder, folder_of(number, count))
        os.mkdir(shard)
        for name, rows in starts.items():
            part = getattr(log, name)[rows[number] : rows[number + 1]]
            with open(os.path.join(shard, f"{name}.npy"), "wb") as file:
                write_npy(file, part)
        files = checksums.describe(shard, [f"{name}.npy" for name in starts])
        record = {"log": log.hash, "shard": number, "shards": count, "files": files}
        seals.append(checksums.sealed(record)[checksums.CHECKSUM])
        checksums.write_sealed(os.path.join(shard, _RECORD), record)
    kinds = {name: np.dtype(getattr(log, name).dtype).str for name in starts}
    return {"count": count, "starts": starts, "kinds": kinds, "seals": seals}


def arrays_of(index: Mapping[str, Any] | None) -> set[str]:
    """Returns the names of the arrays that lie in shards; none of a log in one piece."""
    return set(index["starts"]) if index else set()


def opened(index: Mapping[str, Any], log_hash: str, folder: str, again: str) -> dict[str, Any]:
    """Returns the arrays of events of a log's folder, after a look at every shard.

    All shards must be there, each in its own place, with files of the sizes that were written.
    Their content is read, and held to its checksum, when a file's rows are first looked up.

    Args:
      index: what `save` has returned.
      log_hash: of the log.
      again: what to do where a shard cannot be brought back.

    Raises:
      UserError: a shard is missing or cut, another stands in its place, or that of another log.
    """
    count, seals = index["count"], index["seals"]
    files = [
        _checked(os.path.join(folder, folder_of(number, count)), number, seal, log_hash, again)
        for number, seal in enumerate(seals)
    ]
    return {
        name: ShardedArray(
            starts, np.dtype(index["kinds"][name]), _opener(name, folder, files, index, again)
        )
        for name, starts in index["starts"].items()
    }


def _checked(path: str, number: int, seal: str, log_hash: str, again: str) -> dict[str, Any]:
    """Returns the sizes and checksums of a shard's files, whose sizes they have."""
    wanted = f"expected shard {number} of the log {log_hash} in {path}, found"
    remedy = f"copy the shard back, or {again}"
    if not os.path.isdir(path):
        raise UserError(f"{wanted} no such folder; {remedy}")
    record_path = os.path.join(path, _RECORD)
    record = checksums.read_sealed(record_path, "the record of a shard", remedy)
    if record.get("log") != log_hash:
        raise UserError(f"{wanted} one of the log {record.get('log')!s:.40}; {remedy}")
    if record.get("shard") != number:
        raise UserError(f"{wanted} shard {record.get('shard')!s:.40}; {remedy}")
    if checksums.sealed(record)[checksums.CHECKSUM] != seal:
        raise UserError(
            f"{wanted} one of another preparation, of {record.get('shards')!s:.40} shards; {remedy}"
        )
    checksums.check(path, record["files"], remedy, content=False)
    return record["files"]


def _opener(
    name: str,
    folder: str,
    files: Sequence[Mapping[str, Any]],
    index: Mapping[str, Any],
    again: str,
) -> Callable[[int], np.ndarray]:
    def open_shard(number: int) -> np.ndarray:
        shard = os.path.join(folder, folder_of(number, index["count"]))
        file, remedy = f"{name}.npy", f"copy the shard back, or {again}"
        checksums.check(shard, {file: files[number][file]}, remedy)
        return load_npy(os.path.join(shard, file), "an array", remedy, memory_map=True)

    return open_shard
