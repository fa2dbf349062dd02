"""Reads your own log, as CSV (with a header line, UTF-8) or parquet; ignores other columns.

    clicks.csv    user,item,time,search_session   the last column is optional
    searches.csv  user,session,time,query,clicked_items
    items.csv     item,title       optional: items beyond those that occur in the log, their texts

- `user`, `item`, `session`: any text without white space; no empty ones, no negative numbers.
  Parquet may hold them as `ids` says: text, binary, whole numbers.
- `time`: a whole number, in one unit for both files, or an ISO 8601 date or date and time, which
  becomes milliseconds (without a zone it is UTC); in parquet a timestamp too. Rows may stand in any
  order. The unit is that in which all times are dates of 1990 to 2100 (seconds, milliseconds,
  microseconds, nanoseconds), else positions: an order alone. The setting `time_unit` says another.
- `query`: text. It becomes words by the segmenter of the settings: 'characters' takes runs of
  letters and digits as words in lower case, and each Chinese character as one. May be empty.
- `clicked_items`: the items clicked in the session, separated by spaces; in parquet a list will do.
  May be empty. A session with neither words nor clicks is dropped.
- A session is one row: (user, session) occurs once.
- `search_session` of clicks, which a file need not have: the session of searches that led to the
  click, empty where none did. WITHOUT IT a click that a search led to, told in clicks.csv and in
  clicked_items of an earlier search too, stands in its own history, and a model needs to learn no
  more than to repeat it. A search that is named so is history from its last such click on, and its
  clicked_items need not hold the item; its own history ends at its `time`.

Other names are given as the setting `columns`: 'user=user_id,searches.time=asked_at' reads user
from user_id in every file and the searches' time from asked_at. 'session=' and 'clicked_items=' say
that the file lacks this column: then every row of searches is a session, and none lists clicks.

Each file may be NAME.parquet, NAME.csv.gz or NAME.csv.zst instead of NAME.csv, or a folder NAME of
shards in one of these formats, partitioned or not (`csv_shards`); all shards of a table have the
same columns of the same kinds, and none stands there twice. searches may hold a header only.
tests/data/csv_log is an example of 20 rows.

Names are found column by column in blocks of some million rows, and every click is held in 16
bytes: 100 million of them take some gigabytes.
"""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.errors import UserError
from input_pipelines import segmenters, times
from input_pipelines.coded_events import CodedEvents, build_coded_log
from input_pipelines.log import Log, Ragged
from input_pipelines.readers import csv_shards
from input_pipelines.readers.csv_columns import (
    COLUMNS,
    OPTIONAL_COLUMNS,
    OPTIONAL_TABLES,
    check_headers,
    names_of,
)
from input_pipelines.readers.csv_shards import Shard
from input_pipelines.readers.csv_tables import (
    Clicks,
    Coders,
    Searches,
    Table,
    joined_blocks,
    read_clicks,
    read_items,
    read_searches,
)

_LOG = logging.getLogger(__name__)

INFER = "infer"
# The share of clicked items without a row in clicks or items above which a warning is logged.
_MANY_UNMATCHED = 0.5


def shards_of(data_dir: str, table: str) -> list[Shard]:
    """Lists the files of a table. Raises UserError where it needs one and has none."""
    shards = csv_shards.shards_of(data_dir, table)
    if not shards and table not in OPTIONAL_TABLES:
        needed = (column for column in COLUMNS[table] if column not in OPTIONAL_COLUMNS)
        raise UserError(
            f"expected {table}.csv or {table}.parquet in {data_dir}, found neither, and no folder "
            f"{table} of shards; write it with the columns {','.join(needed)}"
        )
    return shards


def raw_files(data_dir: str) -> list[pathlib.Path]:
    """Lists the files that are read. Raises UserError where one is missing."""
    return [shard.path for table in COLUMNS for shard in shards_of(data_dir, table)]


def unit_of(
    dates: Sequence[bool], whens: Sequence[np.ndarray], given: str, *, ranges: bool = True
) -> str:
    """Returns the unit of the times of clicks and searches.

    Args:
      dates: whether those of each are dates, in milliseconds.
      ranges: whether to hold them to `times.check_ranges`, which takes all times.

    Raises:
      UserError: `given`, the setting time_unit, is no unit or does not fit dates.
    """
    if given not in (INFER, *times.UNITS):
        raise UserError(
            f"expected a time_unit of {', '.join((INFER, *times.UNITS))}, found {given!r}; pass one"
        )
    if ranges:
        clicks, searches = whens
        times.check_ranges(clicks, searches, "csv_log")
    if not any(dates):
        return times.unit_of(*whens) if given == INFER else given
    known = [some for some, are_dates in zip(whens, dates, strict=True) if not are_dates]
    unit = given if given != INFER else times.unit_of(*known) if any(map(len, known)) else ""
    if unit not in ("", "milliseconds"):
        raise UserError(
            f"expected milliseconds beside dates, which become such, found {unit}; write the times "
            "of clicks and searches alike"
        )
    return "milliseconds"


def read_csv_log(
    data_dir: str, *, segmenter: str = "characters", columns: str = "", time_unit: str = INFER
) -> Log:
    """Reads a log from files of the module's schema.

    Args:
      segmenter: 'characters' or 'jieba'.
      columns: other names of columns, such as 'user=user_id,session='.
      time_unit: 'infer', or of `times.UNITS`.

    Raises:
      UserError: a file or columns are missing, or a row has too few fields; a value is no id, no
        time; a session occurs twice, or is named by a click and is not there; times of clicks and
        searches, or of two shards, that cannot be of one unit; a shard is missing, of another
        schema, or there twice.
    """
    split_query = segmenters.segmenter(segmenter)
    names = names_of(columns)
    shards = {table: shards_of(data_dir, table) for table in COLUMNS}
    shards = {table: some for table, some in shards.items() if some}
    has = check_headers(shards, names)
    tables = {
        table: Table(some, {column: names[table][column] for column in has[table]})
        for table, some in shards.items()
    }
    coders, named = Coders(), "search_session" in has["clicks"]
    clicks = read_clicks(tables["clicks"], coders, named)
    searches = read_searches(tables["searches"], coders, has["searches"])
    items, titles = read_items(tables.get("items"), coders, has.get("items", ()))
    tables["clicks"].check_each_once(clicks.user, clicks.item, clicks.time)
    click_times = joined_blocks(clicks.time, np.int64)
    dates = [bool(tables[table].dates) for table in ("clicks", "searches")]
    unit = unit_of(dates, (click_times, searches.time), time_unit)
    del click_times
    events = coded_events(coders, clicks, searches, items, titles, split_query, unit)
    known = np.zeros(len(coders.items.names), bool)
    for codes in (*clicks.item, items):
        known[codes] = True
    events.reading = unmatched(events.search_clicks.values, known, coders.items.names)
    return build_coded_log("csv_log", events)


def coded_events(
    coders: Coders,
    clicks: Clicks,
    searches: Searches,
    items: np.ndarray,
    titles: dict[str, str] | None,
    split_query: Callable[[str], list[str]],
    unit: str,
) -> CodedEvents:
    """Returns the events of tables: searches with their own clicks, and words of queries.

    Args:
      items, titles: the codes of the catalogue's items, and their texts.
      unit: of the times.

    Raises:
      UserError: a session occurs twice, or is named by a click and is not there.
    """
    clicked = Ragged(np.concatenate([[0], np.cumsum(searches.lengths)]), searches.clicked)
    own: tuple[np.ndarray, np.ndarray] | None = None
    if searches.session is not None:
        _check_sessions(searches, coders)
    begins = ends = searches.time
    if clicks.named:
        begins, ends, own = _own_clicks(clicks, searches, coders)
    clicked = _distinct(clicked, own)
    return CodedEvents(
        users=coders.users,
        items=coders.items,
        click_user=clicks.user,
        click_item=clicks.item,
        click_time=clicks.time,
        search_user=searches.user,
        search_time=ends,
        search_begins=begins,
        search_query=searches.query,
        queries=[split_query(query) for query in coders.queries.names.to_pylist()],
        search_clicks=clicked,
        further_items=items,
        item_texts=titles,
        time_unit=unit,
        reading={},
    )


def _pairs(users: np.ndarray, sessions: np.ndarray) -> np.ndarray:
    """Returns one int64 a pair of codes."""
    return users.astype(np.int64) << 32 | sessions


def _check_sessions(searches: Searches, coders: Coders) -> None:
    assert searches.session is not None
    pairs = _pairs(searches.user, searches.session)
    order = np.argsort(pairs, kind="stable")
    again = order[1:][pairs[order][1:] == pairs[order][:-1]]
    if len(again):
        row = int(again.min())
        path, number = searches.place(row)
        user = coders.users.names[int(searches.user[row])]
        session = coders.sessions.names[int(searches.session[row])]
        raise UserError(
            f"expected one row a session in {path}, found user {user} session {session} again in "
            f"row {number}; join its clicked_items in one row"
        )


def _own_clicks(
    clicks: Clicks, searches: Searches, coders: Coders
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Finds the searches of clicks that name one.

    The time of such a search is that of its last click, so that no click has it in its history; it
    begins no later than its first one, whatever the clocks say, so that it has none in its own.

    Returns:
      (begins int64 [S], times int64 [S], (searches, items) of the clicks, in their order).

    Raises:
      UserError: a click names a session that is not there; names its row.
    """
    if searches.session is None:
        raise UserError(
            f"expected sessions in searches for search_session of {clicks.place(0)[0]}, found "
            "none; name their column in config.data.columns"
        )
    pairs = _pairs(searches.user, searches.session)
    order = np.argsort(pairs)
    empty = pc.index(coders.sessions.names, "").as_py()
    begins, ends = searches.time.copy(), searches.time.copy()
    rows_of, items_of, start = [], [], 0
    for users, items, whens, sessions in zip(
        clicks.user, clicks.item, clicks.time, clicks.session, strict=True
    ):
        some = np.flatnonzero(sessions != empty)
        wanted = _pairs(users[some], sessions[some])
        places = np.searchsorted(pairs, wanted, sorter=order)
        rows = order[np.minimum(places, len(order) - 1)] if len(order) else np.zeros(0, np.int64)
        lost = pairs[rows] != wanted if len(order) else np.ones(len(some), bool)
        if lost.any():
            row = int(some[np.argmax(lost)])
            path, number = clicks.place(start + row)
            session = coders.sessions.names[int(sessions[row])].as_py()
            raise UserError(
                f"expected a session of searches in column search_session of {path}, found "
                f"{session[:40]!r}, which user {coders.users.names[int(users[row])]} does not "
                f"have, in row {number}; leave it empty where no search led to the click"
            )
        np.minimum.at(begins, rows, whens[some])
        np.maximum.at(ends, rows, whens[some])
        rows_of.append(rows)
        items_of.append(items[some])
        start += len(users)
    return begins, ends, (joined_blocks(rows_of, np.int64), joined_blocks(items_of, np.int32))


def _distinct(clicked: Ragged, own: tuple[np.ndarray, np.ndarray] | None) -> Ragged:
    """Returns each search's items once, in order, with those of its `own` clicks after them."""
    count = len(clicked.ends) - 1
    rows, items = np.repeat(np.arange(count), np.diff(clicked.ends)), clicked.values
    if own is not None:
        rows, items = np.concatenate([rows, own[0]]), np.concatenate([items, own[1]])
    pairs = rows << 32 | items
    _, first = np.unique(pairs, return_index=True)
    first.sort()
    rows, items = rows[first], items[first]
    order = np.argsort(rows, kind="stable")
    ends = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))]).astype(np.int64)
    return Ragged(ends, items[order])


def unmatched(clicked: np.ndarray, known: np.ndarray, names: pa.LargeStringArray) -> dict[str, Any]:
    """Returns the share of clicked items that neither clicks nor items hold; warns if large."""
    if not len(clicked):
        return {}
    unknown = ~known[clicked]
    share = float(unknown.sum()) / len(clicked)
    if share > _MANY_UNMATCHED:
        _LOG.warning(
            "csv_log: %.0f%% of the items in clicked_items are neither in clicks nor in items, as "
            "%r: are the ids of searches written in another way?",
            *(100 * share, names[int(clicked[np.argmax(unknown)])].as_py()[:40]),
        )
    return {"unmatched_share_of_clicked_items": share}
