"""Joins logs of different users to one, as if all their events had been read at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from input_pipelines.coded_events import laid_out
from input_pipelines.log import Log, content_hash, laid_out_names, take_ragged
from input_pipelines.names import lay_out

_KINDS = ("user_id", "item_id", "word_text")


def joined(
    logs: Sequence[Log],
    further_items: pa.LargeStringArray,
    item_texts: Mapping[str, str] | None,
    reading: Mapping[str, Any],
) -> Log:
    """Returns the log of several logs, no two of which have a user in common.

    Args:
      logs: of one name and one unit of times, with clicks, searches and when these began alone.
      further_items: items of the catalogue that need no event.
      item_texts: text by item, where the source has it.
      reading: as in `Log`.
    """
    names, numbers = [], []
    for kind in _KINDS:
        own = [_names(log, kind) for log in logs]
        every = [*own, further_items] if kind == "item_id" else own
        distinct = pa.chunked_array(every, pa.large_string()).unique()
        distinct = distinct.take(pc.array_sort_indices(distinct))
        names.append(distinct)
        numbers.append([_numbers(some, distinct) for some in own])
    users = np.concatenate([of_log[1:] for of_log in numbers[0]])
    order = np.argsort(users)

    def sorted_rows(field: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns where users' events begin, and where each event is in the logs end to end."""
        counts = np.concatenate([np.diff(getattr(log, field))[1:] for log in logs])
        ends = np.concatenate([[0], np.cumsum(counts)])
        offsets, rows = take_ragged(ends, order)
        return np.concatenate([[0], offsets]).astype(np.int64), rows

    def mapped(field: str, kind: int) -> np.ndarray:
        parts = [of_log[getattr(log, field)] for log, of_log in zip(logs, numbers[kind])]
        return np.concatenate(parts).astype(np.int32)

    rec_offsets, clicks = sorted_rows("rec_offsets")
    search_offsets, searches = sorted_rows("search_offsets")
    search_times = np.concatenate([log.search_times for log in logs])[searches]
    ragged: dict[str, Any] = {}
    for ends_name, values_name, number in (
        ("word_offsets", "word_ids", 2),
        ("click_offsets", "click_items", 1),
    ):
        lengths = np.concatenate([np.diff(getattr(log, ends_name)) for log in logs])
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        ragged[ends_name], rows = take_ragged(ends, searches)
        ragged[values_name] = mapped(values_name, number)[rows]
    made = Log(
        name=logs[0].name,
        is_sample=logs[0].is_sample,
        **laid_out_names(*map(laid_out, names)),
        rec_offsets=rec_offsets,
        rec_items=mapped("rec_items", 1)[clicks],
        rec_times=np.concatenate([log.rec_times for log in logs])[clicks],
        search_offsets=search_offsets,
        search_times=search_times,
        **ragged,
        time_unit=logs[0].time_unit,
        reading=reading,
    )
    begins = [log.search_times if log.search_begins is None else log.search_begins for log in logs]
    begun = np.concatenate(begins)[searches]
    if (begun != search_times).any():
        made = dataclasses.replace(made, search_begins=begun)
    if item_texts is not None:
        ends, flat = lay_out(item_texts.get(item, "") for item in names[1].to_pylist())
        made = dataclasses.replace(made, text_offsets=ends, text_bytes=flat)
    return dataclasses.replace(made, hash=content_hash(made))


def _names(log: Log, kind: str) -> pa.LargeStringArray:
    """Returns the names of the numbers 1, 2, ... as an Arrow array."""
    ends = np.ascontiguousarray(getattr(log, f"{kind}_offsets")[1:], np.int64)
    flat = np.ascontiguousarray(getattr(log, f"{kind}_bytes"))
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(flat)]
    return pa.Array.from_buffers(pa.large_string(), len(ends) - 1, buffers)


def _numbers(some: pa.LargeStringArray, every: pa.LargeStringArray) -> np.ndarray:
    """Returns the number of each name among all, after 0 for 0."""
    places = pc.index_in(some, value_set=every).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], places.astype(np.int64) + 1])
