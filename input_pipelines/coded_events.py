"""Builds logs from events whose names are coded (`name_coder`), with arrays throughout.

The log is that of `log.build_log`, by the same rules. Memory holds every click once, in 16 bytes,
and what sorting a part of the users takes.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from core.errors import UserError
from input_pipelines import id_columns, segmenters
from input_pipelines.empty_searches import count_left_out, with_content
from input_pipelines.log import (
    Log,
    Ragged,
    content_hash,
    laid_out_names,
    offsets_of_users,
    take_ragged,
    tie_break,
)
from input_pipelines.name_coder import NameCoder
from input_pipelines.names import lay_out

_LOG = logging.getLogger(__name__)
# Clicks that are sorted at once, if users are alike.
_PART_ROWS = 2**21
_MOST_PARTS = 2**15


@dataclasses.dataclass(kw_only=True)
class CodedEvents:
    """Holds events in any order, R clicks and S searches, with codes for names.

    Attributes:
      users, items: give the codes their names.
      click_user, click_item: int32, and click_time: int64, in blocks, R together. `build_coded_log`
        takes them: the lists are empty then.
      search_user: int32 [S].
      search_time, search_begins: int64 [S], as in `log.RawEvents`.
      search_query: int32 [S], places in `queries`.
      queries: the words of each different query.
      search_clicks: the items clicked in each search, int32.
      further_items: int32, items of the catalogue without clicks.
      item_texts: text by item, where the source has it.
      time_unit, reading: as in `Log`.
    """

    users: NameCoder
    items: NameCoder
    click_user: list[np.ndarray]
    click_item: list[np.ndarray]
    click_time: list[np.ndarray]
    search_user: np.ndarray
    search_time: np.ndarray
    search_begins: np.ndarray
    search_query: np.ndarray
    queries: Sequence[Sequence[str]]
    search_clicks: Ragged
    further_items: np.ndarray
    item_texts: Mapping[str, str] | None
    time_unit: str
    reading: Mapping[str, Any]


def build_coded_log(
    name: str, events: CodedEvents, *, is_sample: bool = False, may_be_empty: bool = False
) -> Log:
    """Builds the log of the events, as `log.build_log` does; takes the blocks of clicks.

    Args:
      may_be_empty: allows a log without clicks, a part of another.

    Raises:
      UserError: there is not one click.
    """
    if not may_be_empty and not sum(map(len, events.click_user)):
        raise UserError(f"expected clicks in the log of {name}, found none; check the source files")
    words, word_names = _words(name, events)
    keep = with_content(words.ends, events.search_clicks.ends)
    searches = np.flatnonzero(keep)
    user_names, user_numbers = events.users.ranked(
        _used(len(events.users.names), *events.click_user, events.search_user[searches])
    )
    item_names, item_numbers = events.items.ranked(
        _used(
            len(events.items.names),
            *events.click_item,
            events.search_clicks.values,
            events.further_items,
        )
    )
    rec_offsets, rec_items, rec_times = sorted_clicks(
        *(events.click_user, events.click_item, events.click_time),
        *(user_numbers, item_numbers, item_names),
    )
    clicked = item_numbers[events.search_clicks.values]
    search_users = user_numbers[events.search_user[searches]]
    search_order = searches[
        _search_order(
            search_users,
            events.search_time[searches],
            searches,
            words,
            word_names,
            events.search_clicks.ends,
            clicked,
            item_names,
        )
    ]
    word_offsets, word_rows = take_ragged(words.ends, search_order)
    click_offsets, click_rows = take_ragged(events.search_clicks.ends, search_order)
    log = Log(
        name=name,
        is_sample=is_sample,
        **laid_out_names(laid_out(user_names), laid_out(item_names), lay_out(word_names)),
        rec_offsets=rec_offsets,
        rec_items=rec_items,
        rec_times=rec_times,
        search_offsets=offsets_of_users(search_users, len(user_names)),
        search_times=events.search_time[search_order],
        word_offsets=word_offsets,
        word_ids=words.values[word_rows],
        click_offsets=click_offsets,
        click_items=clicked[click_rows],
        time_unit=events.time_unit,
        reading={**events.reading, **count_left_out(keep)},
    )
    if events.item_texts is not None:
        texts = events.item_texts
        ends, flat = lay_out(texts.get(item, "") for item in item_names.to_pylist())
        log = dataclasses.replace(log, text_offsets=ends, text_bytes=flat)
    begins = events.search_begins[search_order]
    if (begins != log.search_times).any():
        log = dataclasses.replace(log, search_begins=begins)
    return dataclasses.replace(log, hash=content_hash(log))


def laid_out(names: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """Returns `names.lay_out` of an Arrow array of text."""
    ends, flat = id_columns.flat_text(names)
    return np.concatenate([[0], ends]).astype(np.int64), flat


def _used(size: int, *codes: np.ndarray) -> np.ndarray:
    used = np.zeros(size, bool)
    for some in codes:
        used[some] = True
    return used


def _words(name: str, events: CodedEvents) -> tuple[Ragged, list[str]]:
    """Returns (the words of each search as numbers from 1, the words in order).

    Words that are too long are cut, with a warning.
    """
    cut = [[segmenters.cut(word) for word in query] for query in events.queries]
    changed = np.array([short != list(one) for short, one in zip(cut, events.queries)], bool)
    if changed.any():
        rows = np.flatnonzero(changed[events.search_query])
        user = events.users.names[int(events.search_user[rows[0]])].as_py()
        _LOG.warning(
            "%s: cut words of more than %d characters in %d searches; the first is search %d of "
            "the source, of user %s",
            *(name, segmenters.LONGEST_WORD, len(rows), rows[0] + 1, user),
        )
    distinct = sorted({word for query in cut for word in query})
    numbers = {word: number for number, word in enumerate(distinct, 1)}
    ends = np.concatenate([[0], np.cumsum([len(query) for query in cut])]).astype(np.int64)
    flat = np.array([numbers[word] for query in cut for word in query], np.int32)
    word_ends, rows = take_ragged(ends, events.search_query)
    return Ragged(word_ends, flat[rows]), distinct


def sorted_clicks(
    users: list[np.ndarray],
    items: list[np.ndarray],
    times: list[np.ndarray],
    user_numbers: np.ndarray,
    item_numbers: np.ndarray,
    item_names: pa.LargeStringArray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorts clicks by user and time; equal times stand in the order of `log.tie_break` of items.

    The same user, item and time twice is one click. Blocks are taken out of the lists as they are
    read: users fall into parts of consecutive numbers, and each part is sorted alone.

    Args:
      users, items, times: blocks of int32, int32 and int64.
      user_numbers, item_numbers: int32, the number of each code, from 1.
      item_names: in the order of their numbers.

    Returns:
      (where each user's clicks start int64 [U+2], items int32, times int64).
    """
    num_users = int(user_numbers.max(initial=0))
    counts = np.zeros(num_users + 1, np.int64)
    for block in users:
        counts += np.bincount(user_numbers[block], minlength=num_users + 1)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    total = int(starts[-1])
    if not total:
        return starts, np.zeros(0, np.int32), np.zeros(0, np.int64)
    parts = min(-(-total // _PART_ROWS), _MOST_PARTS)
    width = -(-(num_users + 1) // parts)
    first = min(int(block.min()) for block in times if len(block))
    span = max(int(block.max()) for block in times if len(block)) - first + 1
    user = np.empty(total, np.int32)
    item = np.empty(total, np.int32)
    time = np.empty(total, np.int64)
    places = starts[np.minimum(np.arange(parts) * width, num_users + 1)]
    while users:
        numbers = user_numbers[users.pop(0)]
        columns: tuple[np.ndarray, ...] = (numbers, item_numbers[items.pop(0)], times.pop(0))
        part = (numbers // width).astype(np.uint16)
        order = np.argsort(part, kind="stable")
        sizes = np.bincount(part, minlength=parts)
        parted: tuple[np.ndarray, ...] = (user, item, time)
        for values, into in zip(columns, parted, strict=True):
            _spread(values[order], sizes, into, places)
        places += sizes
    ties: list[np.ndarray] = []
    kept = 0
    for number in range(parts):
        low = min(number * width, num_users + 1)
        begin, end = starts[low], starts[min(low + width, num_users + 1)]
        whose, what, when = user[begin:end], item[begin:end], time[begin:end]
        if width * span < 2**63:
            moment = (whose - np.int64(low)) * span + (when - first)
            order = np.argsort(moment)
            moment = moment[order]
            again = moment[1:] == moment[:-1]
        else:
            order = np.lexsort((when, whose))
            again = (np.diff(whose[order]) == 0) & (np.diff(when[order]) == 0)
        if again.any():
            if not ties:
                ties.append(tie_break(item_names.to_pylist()))
            _break_ties(order, again, ties[0][what - 1])
        whose, what, when = whose[order], what[order], when[order]
        new = np.ones(len(order), bool)
        new[1:] = ~(again & (what[1:] == what[:-1]))
        size = int(new.sum())
        # What is dropped leaves room: later parts move up.
        user[kept : kept + size] = whose[new]
        item[kept : kept + size] = what[new]
        time[kept : kept + size] = when[new]
        kept += size
    return offsets_of_users(user[:kept], num_users), item[:kept], time[:kept]


def _spread(values: np.ndarray, sizes: np.ndarray, into: np.ndarray, places: np.ndarray) -> None:
    """Copies runs of `sizes` of values to the `places` where they belong."""
    ends = np.cumsum(sizes)
    for number in np.flatnonzero(sizes):
        size = sizes[number]
        into[places[number] : places[number] + size] = values[ends[number] - size : ends[number]]


def _break_ties(order: np.ndarray, again: np.ndarray, ties: np.ndarray) -> None:
    """Sorts the rows of equal moments by their ties, in place.

    Args:
      order: int64 [n], rows in the order of moments.
      again: bool [n-1], whether a moment is that of the row before.
      ties: uint64 [n], of the rows themselves.
    """
    tied = np.zeros(len(order) + 1, bool)
    tied[1:-1] = again
    some = np.flatnonzero(tied[1:] | tied[:-1])
    group = np.cumsum(~tied[:-1])[some]
    rows = order[some]
    order[some] = rows[np.lexsort((rows, ties[rows], group))]


def _search_order(
    users: np.ndarray,
    times: np.ndarray,
    searches: np.ndarray,
    words: Ragged,
    word_names: Sequence[str],
    click_ends: np.ndarray,
    clicked: np.ndarray,
    item_names: pa.LargeStringArray,
) -> np.ndarray:
    """Returns the order of searches by user, time and, for equal times, `log.tie_break`."""
    order = np.lexsort((times, users))
    again = (np.diff(users[order]) == 0) & (np.diff(times[order]) == 0)
    if not again.any():
        return order
    tied = np.zeros(len(order) + 1, bool)
    tied[1:-1] = again
    some = order[tied[1:] | tied[:-1]]
    texts = []
    for row in searches[some].tolist():
        numbers = words.values[words.ends[row] : words.ends[row + 1]].tolist()
        items = clicked[click_ends[row] : click_ends[row + 1]] - 1
        named = item_names.take(pa.array(items)).to_pylist()
        texts.append(" ".join([*(word_names[n - 1] for n in numbers), "\t", *named]))
    ties = np.zeros(len(order), np.uint64)
    ties[some] = tie_break(texts)
    _break_ties(order, again, ties)
    return order
