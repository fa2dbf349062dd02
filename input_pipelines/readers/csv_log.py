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

import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.errors import UserError
from input_pipelines import id_columns, ids, random_streams, segmenters, times
from input_pipelines.coded_events import CodedEvents, build_coded_log
from input_pipelines.log import Log, Ragged
from input_pipelines.name_coder import NameCoder
from input_pipelines.readers import csv_shards, time_columns
from input_pipelines.readers.csv_columns import (
    COLUMNS,
    OPTIONAL_COLUMNS,
    OPTIONAL_TABLES,
    check_headers,
    names_of,
    unreadable,
)
from input_pipelines.readers.csv_shards import Block, Shard

_LOG = logging.getLogger(__name__)

INFER = "infer"
# The share of clicked items without a row in clicks or items above which a warning is logged.
_MANY_UNMATCHED = 0.5


def _shards(data_dir: str, table: str) -> list[Shard]:
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
    return [shard.path for table in COLUMNS for shard in _shards(data_dir, table)]


@dataclasses.dataclass
class _ShardRows:
    """Says which rows of a table a shard holds, and of what times.

    Attributes:
      begin, rows: of the table's rows in the order of its shards.
      first, last: times.
    """

    shard: Shard
    begin: int
    rows: int = 0
    first: int = 0
    last: int = 0


class _Table:
    """Reads a table's shards one after the other; `columns` are the schema's and the files' names.

    Attributes:
      shards: those that have been read so far.
      dates: whether times are dates, in milliseconds; None before the first row.
    """

    def __init__(self, shards: Sequence[Shard], columns: Mapping[str, str]):
        self._shards, self._columns = shards, columns
        self.shards: list[_ShardRows] = []
        self.dates: bool | None = None

    def blocks(self) -> Iterator[Block]:
        """Yields the shards' rows, by the schema's names.

        Raises:
          UserError: a shard cannot be read, or holds a row that ends early.
        """
        for shard in self._shards:
            self.shards.append(_ShardRows(shard, self.rows))
            try:
                for block in csv_shards.read_blocks(shard, list(self._columns.values())):
                    cells = {name: block.columns[own] for name, own in self._columns.items()}
                    yield dataclasses.replace(block, columns=cells)
                    self.shards[-1].rows += len(block)
            except (OSError, ValueError, pa.ArrowException) as error:
                raise unreadable(shard, error) from error

    @property
    def rows(self) -> int:
        return sum(one.rows for one in self.shards)

    def times(self, block: Block) -> np.ndarray:
        """Returns the times of a block, int64, and notes them.

        Raises:
          UserError: a value is no time, or one shard has dates and another numbers.
        """
        here = self.shards[-1]
        # Of the block's own shard: another may be of other times, which is told of both.
        known = self.dates if here.rows else None
        numbers, dates = time_columns.times_of(
            block.columns["time"], str(block.shard.path), block.first_row, known
        )
        if not len(numbers):
            return numbers
        if self.dates is None:
            self.dates = dates
        elif self.dates != dates:
            first = next(one for one in self.shards if one.rows).shard.path
            one, other = (first, here.shard.path)[:: 1 if self.dates else -1]
            raise UserError(
                f"expected times of one kind in all shards, found dates in {one} and numbers in "
                f"{other}; write them alike"
            )
        first, last = int(numbers.min()), int(numbers.max())
        here.first = min(here.first, first) if here.rows else first
        here.last = max(here.last, last) if here.rows else last
        return numbers

    def check_units(self) -> None:
        """Raises UserError where the times of two shards are dates in different units alone."""
        if self.dates:
            return
        by_unit: dict[str, _ShardRows] = {}
        for one in self.shards:
            if one.rows:
                by_unit.setdefault(times.unit_of(np.array([one.first, one.last])), one)
        by_unit.pop(times.POSITIONS, None)
        if len(by_unit) > 1:
            (unit, one), (other_unit, other) = list(by_unit.items())[:2]
            raise UserError(
                f"expected the times of all shards in one unit, found {unit} in {one.shard.path} "
                f"({one.first} to {one.last}) and {other_unit} in {other.shard.path} "
                f"({other.first} to {other.last}); write all times in one unit"
            )

    def place(self, row: int) -> tuple[pathlib.Path, int]:
        """Returns the file of one of the table's rows from 0, and the row's number in it."""
        one = next(one for one in reversed(self.shards) if one.begin <= row)
        return one.shard.path, row - one.begin + 1

    def check_each_once(self, *columns: Sequence[np.ndarray]) -> None:
        """Refuses two shards with the same rows, in whatever order and format.

        Args:
          columns: blocks of integers, all rows of the table in each.

        Raises:
          UserError: there are two.
        """
        alike: dict[tuple[int, int, int], list[_ShardRows]] = {}
        for one in self.shards:
            if one.rows:
                alike.setdefault((one.rows, one.first, one.last), []).append(one)
        sums: dict[tuple[int, ...], _ShardRows] = {}
        for some in alike.values():
            for one in some if len(some) > 1 else ():
                key = (one.rows, _sum_of_rows(columns, one.begin, one.rows))
                if (other := sums.setdefault(key, one)) is not one:
                    raise UserError(
                        f"expected each shard once, found the same {one.rows} rows in "
                        f"{other.shard.path} and {one.shard.path}; remove one of them"
                    )


def _sum_of_rows(columns: Sequence[Sequence[np.ndarray]], begin: int, rows: int) -> int:
    """Returns the sum of the rows' keys, which does not depend on their order."""
    total = 0
    for blocks in zip(*columns, strict=True):
        part = slice(max(begin, 0), max(begin + rows, 0))
        if part.start < len(blocks[0]) and part.stop > 0:
            keys = random_streams.keys(*(block[part] for block in blocks))
            total += int(keys.sum(dtype=np.uint64))
        begin -= len(blocks[0])
    return total % 2**64


def _where(block: Block, column: str) -> str:
    return f"column {column} of {block.shard.path}"


def _ids(block: Block, column: str) -> tuple[np.ndarray, pa.LargeStringArray]:
    """Returns (codes, ids) of a column. Raises UserError with the row of a value that is no id."""
    read = id_columns.coded_texts if block.shard.is_csv else id_columns.coded
    codes, names = read(block.columns[column], _where(block, column), block.first_row)
    rows = np.arange(len(codes)) + block.first_row
    _check_ids(names, codes, rows, block.shard.path, column)
    return codes, names


def _check_ids(
    names: pa.LargeStringArray,
    codes: np.ndarray,
    rows: np.ndarray,
    path: pathlib.Path,
    column: str,
) -> None:
    odd = id_columns.odd_names(names)
    if not odd.any():
        return
    place = int(np.argmax(odd[codes]))
    value = names[int(codes[place])].as_py()
    size = len(value.encode())
    shown = repr(value[:40]) + f"... of {size:,} bytes" * (size > ids.LONGEST_BYTES)
    raise UserError(
        f"expected ids of {path}, column {column}, without white space, not empty, not negative "
        f"and of {ids.LONGEST_BYTES:,} bytes at most, found {shown} in row {rows[place]}; mend the "
        "file"
    )


def _clicked(block: Block) -> tuple[np.ndarray, np.ndarray, pa.LargeStringArray]:
    """Returns (how many items each cell of clicked_items has, the codes of all, their ids)."""
    column, where = block.columns["clicked_items"], _where(block, "clicked_items")
    path, rows = block.shard.path, np.arange(len(block)) + block.first_row
    if pa.types.is_nested(column.type):
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            raise UserError(
                f"expected lists or text in {where}, found {column.type}; write the file again"
            )
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        values = pc.list_flatten(column)
        rows = np.repeat(rows, lengths)
        try:
            codes, names = id_columns.coded(values, where)
        except UserError:
            # The rule again, with the rows of the values.
            ids.of_values(values.to_pylist(), where, rows.tolist())
            raise
    else:
        texts, distinct = id_columns.coded_texts(column, where, block.first_row)
        cells = [text.split() for text in distinct.to_pylist()]
        counts = np.fromiter(map(len, cells), np.int64, len(cells))
        flat = pa.array([item for cell in cells for item in cell], pa.large_string())
        codes, names = id_columns.coded_texts(flat, where)
        starts = np.cumsum(counts) - counts
        lengths = counts[texts]
        rows = np.repeat(rows, lengths)
        ends = np.cumsum(lengths)
        places = np.repeat(starts[texts] - (ends - lengths), lengths) + np.arange(len(rows))
        codes = codes[places]
    _check_ids(names, codes, rows, path, "clicked_items")
    return lengths, codes, names


@dataclasses.dataclass
class _Clicks:
    """Holds the clicks in blocks; `session` are codes of texts, where the files name sessions."""

    user: list[np.ndarray]
    item: list[np.ndarray]
    time: list[np.ndarray]
    session: list[np.ndarray]


@dataclasses.dataclass
class _Coders:
    users: NameCoder = dataclasses.field(default_factory=NameCoder)
    items: NameCoder = dataclasses.field(default_factory=NameCoder)
    sessions: NameCoder = dataclasses.field(default_factory=NameCoder)
    queries: NameCoder = dataclasses.field(default_factory=NameCoder)

    def merge(self) -> None:
        for coder in (self.users, self.items, self.sessions, self.queries):
            coder.merge()


def _read_clicks(table: _Table, coders: _Coders, named: bool) -> _Clicks:
    clicks = _Clicks([], [], [], [])
    for block in table.blocks():
        for column, coder, codes_of in (
            ("user", coders.users, clicks.user),
            ("item", coders.items, clicks.item),
        ):
            codes, names = _ids(block, column)
            coder.add(names, codes)
            codes_of.append(codes)
        clicks.time.append(table.times(block))
        if named:
            where = _where(block, "search_session")
            column = block.columns["search_session"]
            codes, names = id_columns.coded_texts(column, where, block.first_row)
            coders.sessions.add(names, codes)
            clicks.session.append(codes)
    table.check_units()
    return clicks


@dataclasses.dataclass
class _Searches:
    """Holds the searches; `session` is None where there is no such column."""

    user: np.ndarray
    time: np.ndarray
    query: np.ndarray
    session: np.ndarray | None
    lengths: np.ndarray
    clicked: np.ndarray


def _joined(blocks: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, kind), *blocks])


def _read_searches(table: _Table, coders: _Coders, has: Sequence[str]) -> _Searches:
    users, whens, queries, sessions, lengths, clicked = ([] for _ in range(6))  # type: ignore
    for block in table.blocks():
        codes, names = _ids(block, "user")
        coders.users.add(names, codes)
        users.append(codes)
        if "session" in has:
            codes, names = _ids(block, "session")
            coders.sessions.add(names, codes)
            sessions.append(codes)
        whens.append(table.times(block))
        where = _where(block, "query")
        codes, names = id_columns.coded_texts(block.columns["query"], where, block.first_row)
        coders.queries.add(names, codes)
        queries.append(codes)
        if "clicked_items" in has:
            counts, codes, names = _clicked(block)
            coders.items.add(names, codes)
            lengths.append(counts)
            clicked.append(codes)
    table.check_units()
    coders.merge()
    table.check_each_once(users, whens, queries)
    return _Searches(
        _joined(users, np.int32),
        _joined(whens, np.int64),
        _joined(queries, np.int32),
        _joined(sessions, np.int32) if "session" in has else None,
        _joined(lengths, np.int64) if "clicked_items" in has else np.zeros(table.rows, np.int64),
        _joined(clicked, np.int32),
    )


def _read_items(
    table: _Table | None, coders: _Coders, has: Sequence[str]
) -> tuple[np.ndarray, dict[str, str] | None]:
    """Returns (the codes of the items of the catalogue, their texts where it has titles)."""
    every: list[np.ndarray] = []
    titles: dict[str, str] | None = {} if "title" in has else None
    for block in table.blocks() if table is not None else ():
        codes, names = _ids(block, "item")
        if titles is not None:
            where = _where(block, "title")
            places, texts = id_columns.coded_texts(block.columns["title"], where, block.first_row)
            known, shown = names.to_pylist(), texts.to_pylist()
            titles |= {known[c]: shown[p] for c, p in zip(codes, places, strict=True)}
        coders.items.add(names, codes)
        every.append(codes)
    coders.merge()
    return _joined(every, np.int32), titles


def _unit(clicks: _Table, searches: _Table, whens: Sequence[np.ndarray], given: str) -> str:
    """Returns the unit of the times.

    Raises:
      UserError: `given`, the setting time_unit, is no unit or does not fit dates.
    """
    if given not in (INFER, *times.UNITS):
        raise UserError(
            f"expected a time_unit of {', '.join((INFER, *times.UNITS))}, found {given!r}; pass one"
        )
    tables = (clicks, searches)
    times.check_ranges(*whens, "csv_log")
    if not any(table.dates for table in tables):
        return times.unit_of(*whens) if given == INFER else given
    known = [some for some, table in zip(whens, tables, strict=True) if not table.dates]
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
    shards = {table: _shards(data_dir, table) for table in COLUMNS}
    shards = {table: some for table, some in shards.items() if some}
    has = check_headers(shards, names)
    tables = {
        table: _Table(some, {column: names[table][column] for column in has[table]})
        for table, some in shards.items()
    }
    coders, named = _Coders(), "search_session" in has["clicks"]
    clicks = _read_clicks(tables["clicks"], coders, named)
    searches = _read_searches(tables["searches"], coders, has["searches"])
    items, titles = _read_items(tables.get("items"), coders, has.get("items", ()))
    tables["clicks"].check_each_once(clicks.user, clicks.item, clicks.time)
    click_times = _joined(clicks.time, np.int64)
    unit = _unit(tables["clicks"], tables["searches"], (click_times, searches.time), time_unit)
    del click_times
    clicked = Ragged(np.concatenate([[0], np.cumsum(searches.lengths)]), searches.clicked)
    own: tuple[np.ndarray, np.ndarray] | None = None
    if searches.session is not None:
        _check_sessions(tables["searches"], searches, coders)
    begins = ends = searches.time
    if named:
        begins, ends, own = _own_clicks(tables["clicks"], clicks, searches, coders)
    clicked = _distinct(clicked, own)
    queries = coders.queries.names.to_pylist()
    known = np.zeros(len(coders.items.names), bool)
    for codes in (*clicks.item, items):
        known[codes] = True
    events = CodedEvents(
        users=coders.users,
        items=coders.items,
        click_user=clicks.user,
        click_item=clicks.item,
        click_time=clicks.time,
        search_user=searches.user,
        search_time=ends,
        search_begins=begins,
        search_query=searches.query,
        queries=[split_query(query) for query in queries],
        search_clicks=clicked,
        further_items=items,
        item_texts=titles,
        time_unit=unit,
        reading=_unmatched(clicked.values, known, coders.items.names),
    )
    return build_coded_log("csv_log", events)


def _pairs(users: np.ndarray, sessions: np.ndarray) -> np.ndarray:
    """Returns one int64 a pair of codes."""
    return users.astype(np.int64) << 32 | sessions


def _check_sessions(table: _Table, searches: _Searches, coders: _Coders) -> None:
    assert searches.session is not None
    pairs = _pairs(searches.user, searches.session)
    order = np.argsort(pairs, kind="stable")
    again = order[1:][pairs[order][1:] == pairs[order][:-1]]
    if len(again):
        row = int(again.min())
        path, number = table.place(row)
        user = coders.users.names[int(searches.user[row])]
        session = coders.sessions.names[int(searches.session[row])]
        raise UserError(
            f"expected one row a session in {path}, found user {user} session {session} again in "
            f"row {number}; join its clicked_items in one row"
        )


def _own_clicks(
    table: _Table, clicks: _Clicks, searches: _Searches, coders: _Coders
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
            f"expected sessions in searches for search_session of {table.shards[0].shard.path}, "
            "found none; name their column in config.data.columns"
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
            path, number = table.place(start + row)
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
    return begins, ends, (_joined(rows_of, np.int64), _joined(items_of, np.int32))


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


def _unmatched(
    clicked: np.ndarray, known: np.ndarray, names: pa.LargeStringArray
) -> dict[str, Any]:
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
