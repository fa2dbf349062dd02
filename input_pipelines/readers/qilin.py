"""Turns the search and recommendation rows of Qilin (THUIR/Qilin) into the events of a log.

A click event is a clicked impression of a recommendation row, at that impression's own time. A
search event is one search row: its query, its clicked notes by position, at the time of its last
click, or of its earliest impression where nothing was clicked; it is asked at its earliest
impression, where its own history ends. Search times are in seconds and become milliseconds like the
others. The same note repeated within a row counts once, at its earliest click. Notes of a search
that were shown by its time and not clicked stand in the order of its page. Events
without a time are dropped: they have no place in a history. Train and test files are both read;
splitting is ours.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.errors import UserError
from input_pipelines import segmenters
from input_pipelines.log import Log, Ragged, RawEvents, build_log
from input_pipelines.readers import qilin_files
from input_pipelines.readers.qilin_files import NO_TIME, Rows

_LOG = logging.getLogger(__name__)

FULL_USERS = 15_482
FULL_ROWS = {
    "search_train": 44_024,
    "search_test": 6_192,
    "recommendation_train": 83_437,
    "recommendation_test": 11_115,
}
# Medians of the two kinds' times, in one unit, are nearer to each other than this.
_LARGEST_RATIO = 100


@dataclasses.dataclass(frozen=True)
class QilinEvents:
    """Holds Qilin's events with its own ids and untouched queries, in any order; times in ms.

    Attributes:
      click_user, click_item, click_time: int64 [R].
      search_user, search_time, search_begin: int64 [S]; search_query: str, length S.
      search_click_ends: int64 [S+1]; search s clicked search_clicks[ends[s]:ends[s+1]].
      search_clicks: int64.
      search_unclicked_ends, search_unclicked: likewise, of the notes shown and not clicked.
      shown_user, shown_item: int64 [P], every pair once: all impressions, clicked or not.
    """

    click_user: np.ndarray
    click_item: np.ndarray
    click_time: np.ndarray
    search_user: np.ndarray
    search_time: np.ndarray
    search_begin: np.ndarray
    search_query: Sequence[str]
    search_click_ends: np.ndarray
    search_clicks: np.ndarray
    search_unclicked_ends: np.ndarray
    search_unclicked: np.ndarray
    shown_user: np.ndarray
    shown_item: np.ndarray


def read_qilin(
    data_dir: str, *, segmenter: str = "characters", batch_rows: int = qilin_files.BATCH_ROWS
) -> Log:
    """Reads Qilin's folders (or toy CSVs) into a log.

    Where the notes' table is there, an item's text is its note's title and content. Where the
    users' table is there, it gives their profiles. A file named SAMPLE beside the tables marks
    made-up data.

    Args:
      segmenter: 'characters' or 'jieba'.
      batch_rows: rows of a parquet file that are read at once.

    Raises:
      UserError: files or columns missing or malformed; the full set with wrong counts.
    """
    split_query = segmenters.segmenter(segmenter)
    qilin_files.raw_files(data_dir)  # names a missing table before the others are read
    events = read_events(data_dir, batch_rows)
    words = {query: split_query(query) for query in set(events.search_query)}
    notes = np.unique(np.concatenate([events.click_item, events.search_clicks, events.shown_item]))
    users = np.unique(np.concatenate([events.click_user, events.search_user]))
    raw = RawEvents(
        click_user=events.click_user,
        click_item=events.click_item,
        click_time=events.click_time,
        search_user=events.search_user,
        search_time=events.search_time,
        search_begins=events.search_begin,
        search_words=[words[query] for query in events.search_query],
        search_clicks=Ragged(events.search_click_ends, events.search_clicks),
        search_unclicked=Ragged(events.search_unclicked_ends, events.search_unclicked),
        items=events.shown_item,
        item_texts=qilin_files.read_note_texts(data_dir, notes, batch_rows),
        user_profiles=qilin_files.read_profiles(data_dir, users, batch_rows),
        time_unit="milliseconds",
    )
    is_sample = os.path.exists(os.path.join(data_dir, qilin_files.SAMPLE_MARK))
    return build_log("qilin", raw, is_sample=is_sample)


def read_events(data_dir: str, batch_rows: int = qilin_files.BATCH_ROWS) -> QilinEvents:
    """Reads the events straight from the files. Raises UserError like `read_qilin`."""
    searches = _Gathered()
    clicks: list[np.ndarray] = []
    shown: list[np.ndarray] = []
    users: list[np.ndarray] = []
    counts = dict.fromkeys(FULL_ROWS, 0)
    for kind in qilin_files.KINDS:
        for part in qilin_files.PARTS:
            for rows in qilin_files.read_rows(data_dir, kind, part, batch_rows):
                counts[f"{kind}_{part}"] += len(rows.user)
                users.append(rows.user)
                shown.append(_unique_pairs(rows.user[rows.row], rows.note))
                if kind == "search":
                    searches.add(rows)
                else:
                    clicks.append(_recommendation_clicks(rows))
    check_counts(counts, len(np.unique(np.concatenate(users))), data_dir)
    click = np.concatenate(clicks, axis=1) if clicks else np.zeros((3, 0), np.int64)
    pairs = np.concatenate(shown, axis=1)
    pairs = _unique_pairs(pairs[0], pairs[1])
    events = QilinEvents(
        click_user=click[0],
        click_item=click[1],
        click_time=click[2],
        shown_user=pairs[0],
        shown_item=pairs[1],
        **searches.columns(),
    )
    untimed = sum(counts[n] for n in counts if n.startswith("search")) - len(events.search_time)
    if untimed:
        _LOG.info("dropped %d search rows of %s whose impressions have no time", untimed, data_dir)
    _check_units(events, data_dir)
    return events


def check_counts(counts: dict[str, int], num_users: int, data_dir: str) -> bool:
    """Tells whether this is the full Qilin, by its users and the rows of its four tables.

    Raises:
      UserError: the count of users or of a table is that of the full set, and another is not.
    """
    if num_users != FULL_USERS and not any(counts[n] == FULL_ROWS[n] for n in FULL_ROWS):
        rows = ", ".join(f"{name} {counts[name]}" for name in FULL_ROWS)
        _LOG.info("not the full Qilin: %d users; rows: %s", num_users, rows)
        return False
    wrong = [f"{n} {counts[n]} (of {FULL_ROWS[n]})" for n in FULL_ROWS if counts[n] != FULL_ROWS[n]]
    if num_users != FULL_USERS:
        wrong.append(f"users {num_users} (of {FULL_USERS})")
    if wrong:
        raise UserError(
            f"expected the rows of the full Qilin in {data_dir}, which matches it otherwise, found "
            f"{', '.join(wrong)}; download the folders again"
        )
    _LOG.info("the full Qilin: all counts as published")
    return True


def _check_units(events: QilinEvents, data_dir: str) -> None:
    if not len(events.click_time) or not len(events.search_time):
        return
    click, search = np.median(events.click_time), np.median(events.search_time)
    low, high = sorted((abs(click), abs(search)))
    if high > _LARGEST_RATIO * max(low, 1):
        raise UserError(
            f"expected request_timestamp in milliseconds and search_timestamp in seconds in "
            f"{data_dir}, found medians {click:.0f} and {search / 1000:.0f}; use the files as "
            "published"
        )


def _unique_pairs(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    order = np.lexsort((items, users))
    users, items = users[order], items[order]
    first = np.ones(len(users), bool)
    first[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
    return np.stack([users[first], items[first]])


def _first_of_each_note(rows: Rows, chosen: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Returns of the impressions `chosen` the one of smallest rank for each (row, note)."""
    order = chosen[np.lexsort((rank[chosen], rows.note[chosen], rows.row[chosen]))]
    first = np.ones(len(order), bool)
    first[1:] = (rows.row[order[1:]] != rows.row[order[:-1]]) | (
        rows.note[order[1:]] != rows.note[order[:-1]]
    )
    return order[first]


def _recommendation_clicks(rows: Rows) -> np.ndarray:
    """Returns (user, note, time) of each click, int64 [3, n]."""
    chosen = np.flatnonzero(rows.clicked & (rows.time != NO_TIME))
    chosen = _first_of_each_note(rows, chosen, rows.time)
    return np.stack([rows.user[rows.row[chosen]], rows.note[chosen], rows.time[chosen]])


class _Gathered:
    """Gathers search events, batch by batch."""

    def __init__(self) -> None:
        self._users: list[np.ndarray] = []
        self._times: list[np.ndarray] = []
        self._begins: list[np.ndarray] = []
        self._queries: list[str] = []
        self._clicks = _RowsOfNotes()
        self._unclicked = _RowsOfNotes()

    def add(self, rows: Rows) -> None:
        times = np.full(len(rows.user), NO_TIME)
        np.minimum.at(times, rows.row, rows.time)
        timed = times != NO_TIME
        self._begins.append(times[timed])
        # A session is history once its last click has happened: at its first impression, clicks
        # that come later (hours, in the published rows) would be known too early.
        ends = np.flatnonzero(rows.clicked & (rows.time != NO_TIME))
        latest = times.copy()
        latest[rows.row[ends]] = 0
        np.maximum.at(latest, rows.row[ends], rows.time[ends])
        times = latest
        clicked = rows.clicked & timed[rows.row]
        # What came on the page after the session's time, its further pages, is not yet history.
        shown = ~rows.clicked & (rows.time <= times[rows.row]) & (rows.time != NO_TIME)
        pairs = rows.row * (rows.note.max(initial=0) + 1) + rows.note
        shown &= ~np.isin(pairs, pairs[clicked])
        self._users.append(rows.user[timed])
        self._times.append(times[timed])
        self._queries += [rows.query[i] for i in np.flatnonzero(timed)]
        self._clicks.add(rows, clicked, timed)
        self._unclicked.add(rows, shown, timed)

    def columns(self) -> dict[str, Any]:
        """Returns the fields of QilinEvents whose names start with search."""
        none = [np.zeros(0, np.int64)]
        click_ends, clicks = self._clicks.ends_and_notes()
        unclicked_ends, unclicked = self._unclicked.ends_and_notes()
        return {
            "search_user": np.concatenate(self._users or none),
            "search_time": np.concatenate(self._times or none),
            "search_begin": np.concatenate(self._begins or none),
            "search_query": self._queries,
            "search_click_ends": click_ends,
            "search_clicks": clicks,
            "search_unclicked_ends": unclicked_ends,
            "search_unclicked": unclicked,
        }


class _RowsOfNotes:
    """Gathers some notes of each search, by their place on the page."""

    def __init__(self) -> None:
        self._counts: list[np.ndarray] = []
        self._notes: list[np.ndarray] = []

    def add(self, rows: Rows, wanted: np.ndarray, timed: np.ndarray) -> None:
        """Adds the impressions `wanted`, bool [I], of the rows `timed`, bool [R]."""
        position = np.nan_to_num(rows.position, nan=np.inf)
        chosen = _first_of_each_note(rows, np.flatnonzero(wanted), position)
        chosen = chosen[np.lexsort((rows.note[chosen], position[chosen], rows.row[chosen]))]
        self._counts.append(np.bincount(rows.row[chosen], minlength=len(timed))[timed])
        self._notes.append(rows.note[chosen])

    def ends_and_notes(self) -> tuple[np.ndarray, np.ndarray]:
        none = [np.zeros(0, np.int64)]
        ends = np.concatenate([[0], np.cumsum(np.concatenate(self._counts or none))])
        return ends.astype(np.int64), np.concatenate(self._notes or none)
