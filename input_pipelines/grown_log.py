"""Joins the events of a new day to a log: numbers stay, new names get the next ones.

What the day brings is sorted alone and put among the events that are there, by binary searches
within the users that it names. The arrays of events are written again, in one pass, because the log
has every user's events beside each other; nothing is sorted or read from raw files again.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.errors import UserError
from input_pipelines.event_search import first_not_before
from input_pipelines.log import Log, take_ragged, tie_break
from input_pipelines.log_checks import validate_log

# Groups of arrays that the log and the day must both have, or lack.
_ALIKE = ("unclicked_offsets", "place_offsets", "profile_offsets", "fact_offsets", "text_offsets")
_BY_NAME = (("text", "item"), ("fact", "item"), ("profile", "user"))


def grown(log: Log, day: Log) -> Log:
    """Returns the log with the events of a day, whose hash follows from both logs' hashes.

    Events of equal times stand in the order of `log.tie_break`, as in a log that is read at once;
    a click that is there already is not told again. Items and users keep the texts and facts that
    they have.

    Raises:
      UserError: the day is of other times or of another kind than the log, or has searches that
        are in the log.
    """
    _check_alike(log, day)
    changes: dict[str, Any] = {}
    numbers = {}
    kinds = {"user": "user_id", "item": "item_id", "word": "word_text", "place": "place"}
    for kind, field in kinds.items():
        if getattr(log, f"{field}_offsets") is not None:
            numbers[kind], added = _joined_names(log, day, field)
            changes |= added

    def count(field: str) -> int:
        offsets = f"{field}_offsets"
        return len(changes.get(offsets, getattr(log, offsets))) - 2

    for field, kind in _BY_NAME:
        if getattr(log, f"{field}_offsets") is not None:
            changes |= _joined_facts(log, day, field, numbers[kind], count(kinds[kind]))
    users = count("user_id")
    changes |= _joined_clicks(log, day, numbers["user"], numbers["item"], users)
    changes |= _joined_searches(log, day, numbers, users)
    hashed = hashlib.sha256(f"{log.hash}+{day.hash}".encode()).hexdigest()[:16]
    made = dataclasses.replace(log, hash=hashed, reading=_summed(log, day), **changes)
    validate_log(made)
    return made


def _summed(log: Log, day: Log) -> dict[str, Any]:
    """Returns what was noted of both: counts add up, the day's word stands for all else."""
    counted = {
        name: log.reading[name] + day.reading[name]
        for name in log.reading.keys() & day.reading.keys()
        if isinstance(log.reading[name], int) and isinstance(day.reading[name], int)
    }
    return {**log.reading, **day.reading, **counted}


def _check_alike(log: Log, day: Log) -> None:
    if log.published:
        raise UserError(
            f"expected a log without a split of its own to append to, found that of {log.name}; "
            "prepare all of it anew"
        )
    if log.time_unit != day.time_unit:
        raise UserError(
            f"expected times in {log.time_unit} as in the log, found {day.time_unit} in the new "
            f"files; write them in that unit, or pass --time_unit={log.time_unit}"
        )
    for name in _ALIKE:
        if (getattr(log, name) is None) != (getattr(day, name) is None):
            has, lacks = (
                ("log", "new files") if getattr(day, name) is None else ("new files", "log")
            )
            raise UserError(
                f"expected new files of the kind of the log's, found {name.split('_')[0]}s in the "
                f"{has} and none in the {lacks}; bring files with the same columns"
            )


def _as_text(offsets: np.ndarray, flat: np.ndarray) -> pa.LargeStringArray:
    """Returns the names of the numbers 1, 2, ... as an Arrow array, without a copy."""
    ends = np.ascontiguousarray(offsets[1:], np.int64)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(np.ascontiguousarray(flat))]
    return pa.Array.from_buffers(pa.large_string(), len(ends) - 1, buffers)


def _joined_names(log: Log, day: Log, field: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns (the log's number of each of the day's, from 0 for 0; the arrays that change)."""
    offsets, flat = (f"{field}_offsets", f"{field}_bytes")
    own, new = (_as_text(getattr(one, offsets), getattr(one, flat)) for one in (log, day))
    places = pc.index_in(new, value_set=own)
    known = places.is_valid().to_numpy(zero_copy_only=False)
    numbers = pc.fill_null(places, 0).to_numpy(zero_copy_only=False).astype(np.int64) + 1
    numbers[~known] = len(own) + 1 + np.arange(int((~known).sum()))
    numbers = np.concatenate([[0], numbers])
    if known.all():
        return numbers, {}
    rows = np.flatnonzero(~known) + 1
    more, bytes_of = take_ragged(np.asarray(getattr(day, offsets)), rows)
    ends, text = np.asarray(getattr(log, offsets)), np.asarray(getattr(log, flat))
    return numbers, {
        offsets: np.concatenate([ends, ends[-1] + more[1:]]),
        flat: np.concatenate([text, np.asarray(getattr(day, flat))[bytes_of]]),
    }


def _joined_facts(
    log: Log, day: Log, field: str, numbers: np.ndarray, total: int
) -> dict[str, np.ndarray]:
    """Returns the arrays of texts, facts or profiles of `total` names, if the day changes them."""
    offsets, flat = (f"{field}_offsets", f"{field}_bytes")
    ends, told = np.asarray(getattr(log, offsets)), np.diff(getattr(day, offsets))
    lengths = np.zeros(total + 1, np.int64)
    lengths[: len(ends) - 1] = np.diff(ends)
    new = np.flatnonzero((told > 0) & (lengths[numbers] == 0))
    if not len(new) and total + 2 == len(ends):
        return {}
    order = np.argsort(numbers[new])
    new = new[order]
    at = ends[np.minimum(numbers[new], len(ends) - 1)]
    added_ends, places = take_ragged(np.asarray(getattr(day, offsets)), new)
    values = np.asarray(getattr(day, flat))[places]
    lengths[numbers[new]] = told[new]
    return {
        offsets: np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        flat: np.insert(getattr(log, flat), np.repeat(at, np.diff(added_ends)), values),
    }


def _joined_clicks(
    log: Log, day: Log, users_of: np.ndarray, items_of: np.ndarray, users: int
) -> dict[str, np.ndarray]:
    owners = users_of[np.repeat(np.arange(len(day.rec_offsets) - 1), np.diff(day.rec_offsets))]
    items, times = items_of[day.rec_items], np.asarray(day.rec_times)
    # A user's rows stand together in the day already: this keeps their order.
    order = np.argsort(owners, kind="stable")
    owners, items, times, rows = owners[order], items[order], times[order], order
    offsets = _longer(log.rec_offsets, users)
    first, last = _places(log.rec_times, offsets, owners, times)

    def name(one: Log, row: int) -> str:
        return one.item_ids[int(one.rec_items[row])]

    at, new = first.copy(), np.ones(len(first), bool)
    for place in np.flatnonzero(last > first).tolist():
        there = range(int(first[place]), int(last[place]))
        new[place] = items[place] not in log.rec_items[there.start : there.stop]
        ties = tie_break([name(day, int(rows[place])), *(name(log, row) for row in there)])
        at[place] += int((ties[1:] < ties[0]).sum())
    owners, items, times, at = owners[new], items[new], times[new], at[new]
    counts = np.diff(offsets) + np.bincount(owners, minlength=users + 1)
    return {
        "rec_offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "rec_items": np.insert(log.rec_items, at, items.astype(np.int32)),
        "rec_times": np.insert(log.rec_times, at, times),
    }


def _longer(offsets: np.ndarray, users: int) -> np.ndarray:
    """Returns offsets of as many users, of whom the last have nothing."""
    ends = np.asarray(offsets)
    return np.concatenate([ends, np.full(users + 2 - len(ends), ends[-1], np.int64)])


def _places(
    times: np.ndarray, offsets: np.ndarray, owners: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first and the end of the rows of each owner that have the wanted time."""
    low, high = offsets[owners], offsets[owners + 1]
    return (
        first_not_before(times, low, high, wanted),
        first_not_before(times, low, high, wanted, after=True),
    )


def _joined_searches(
    log: Log, day: Log, numbers: dict[str, np.ndarray], users: int
) -> dict[str, np.ndarray]:
    owners = np.repeat(np.arange(len(day.search_offsets) - 1), np.diff(day.search_offsets))
    owners = numbers["user"][owners]
    rows = np.argsort(owners, kind="stable")
    owners, times = owners[rows], np.asarray(day.search_times)[rows]
    offsets = _longer(log.search_offsets, users)
    at, last = _places(log.search_times, offsets, owners, times)
    repeated = []
    for place in np.flatnonzero(last > at).tolist():
        there = range(int(at[place]), int(last[place]))
        texts = [_text(day, int(rows[place])), *(_text(log, row) for row in there)]
        if texts[0].strip() and texts[0] in texts[1:]:
            repeated.append(int(rows[place]))
        ties = tie_break(texts)
        at[place] += int((ties[1:] <= ties[0]).sum())
    _check_new(day, repeated)
    counts = np.diff(offsets) + np.bincount(owners, minlength=users + 1)
    changes = {
        "search_offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "search_times": np.insert(log.search_times, at, times),
    }
    ragged = [("word_offsets", "word_ids", "word"), ("click_offsets", "click_items", "item")]
    if log.unclicked_offsets is not None:
        ragged.append(("unclicked_offsets", "unclicked_items", "item"))
    for ends_name, values_name, kind in ragged:
        ends = np.asarray(getattr(log, ends_name))
        added, places = take_ragged(np.asarray(getattr(day, ends_name)), rows)
        values = numbers[kind][np.asarray(getattr(day, values_name))[places]].astype(np.int32)
        lengths = np.insert(np.diff(ends), at, np.diff(added))
        changes[ends_name] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        changes[values_name] = np.insert(
            getattr(log, values_name), np.repeat(ends[at], np.diff(added)), values
        )
    if log.search_places is not None and day.search_places is not None:
        values = numbers["place"][np.asarray(day.search_places)[rows]].astype(np.int32)
        changes["search_places"] = np.insert(log.search_places, at, values)
    if log.search_begins is not None or day.search_begins is not None:
        own, new = (
            one.search_times if one.search_begins is None else one.search_begins
            for one in (log, day)
        )
        changes["search_begins"] = np.insert(own, at, np.asarray(new)[rows])
    return changes


def _check_new(day: Log, repeated: list[int]) -> None:
    """Raises UserError where searches of the day are in the log: they would be told twice."""
    if not repeated:
        return
    first = repeated[0]
    user = int(np.searchsorted(day.search_offsets, first, side="right")) - 1
    raise UserError(
        f"expected searches that the log does not have yet, found {len(repeated):,} of "
        f"{len(day.search_times):,} that it has, such as that of user "
        f"{day.user_ids[user]!r:.60} at {day.search_times[first]} for "
        f"{' '.join(day.query(first))!r:.60}; leave out what has joined before"
    )


def _text(log: Log, search: int) -> str:
    """Returns the text by which searches of one user and time are told apart (`log.build_log`)."""
    clicked = log.click_items[log.click_offsets[search] : log.click_offsets[search + 1]]
    parts = [*log.query(search), "\t", *log.item_ids[clicked]]
    if log.unclicked_offsets is not None:
        parts += ["\t", *log.item_ids[log.unclicked(search)]]
    if log.places is not None:
        parts += ["\t", log.place(search)]
    return " ".join(parts)
