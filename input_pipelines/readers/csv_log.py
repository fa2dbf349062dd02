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

Each file may be NAME.parquet instead of NAME.csv. searches may hold a header only.
tests/data/csv_log is an example of 20 rows.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from core.errors import UserError
from input_pipelines import id_columns, ids, segmenters, times
from input_pipelines.file_bounds import open_parquet
from input_pipelines.log import Log, RawEvents, build_log
from input_pipelines.readers import csv_blocks
from input_pipelines.readers.csv_columns import (
    COLUMNS,
    OPTIONAL_COLUMNS,
    OPTIONAL_TABLES,
    check_headers,
    names_of,
    unreadable,
)

_LOG = logging.getLogger(__name__)

INFER = "infer"
_TIME = re.compile(r"-?[0-9]+")
_LARGEST_TIME = 2**62  # the difference of two has 64 bits
_BAD_ID = re.compile(r"^$|\s|^-\d")
# The share of clicked items without a row in clicks or items above which a warning is logged.
_MANY_UNMATCHED = 0.5

# What a file holds of a column: text from CSV, an Arrow column from parquet.
_Column: TypeAlias = "list[str] | pa.ChunkedArray"


@dataclasses.dataclass(frozen=True)
class _Table:
    """Holds a file and its columns by the schema's names; a column that it lacks is left out."""

    path: pathlib.Path
    columns: Mapping[str, _Column]

    def where(self, name: str) -> str:
        return f"column {name} of {self.path}"


def _table_file(data_dir: str, name: str) -> pathlib.Path | None:
    for suffix in ("csv", "parquet"):
        path = pathlib.Path(data_dir) / f"{name}.{suffix}"
        if path.is_file():
            return path
    if name in OPTIONAL_TABLES:
        return None
    needed = (column for column in COLUMNS[name] if column not in OPTIONAL_COLUMNS)
    raise UserError(
        f"expected {name}.csv or {name}.parquet in {data_dir}, found neither; write it with the "
        f"columns {','.join(needed)}"
    )


def raw_files(data_dir: str) -> list[pathlib.Path]:
    """Lists the files that are read. Raises UserError where one is missing."""
    paths = [_table_file(data_dir, name) for name in COLUMNS]
    return [path for path in paths if path is not None]


def _read(path: pathlib.Path, names: Mapping[str, str], columns: Sequence[str]) -> _Table:
    """Reads the wanted columns; `names` are the file's of them."""
    wanted = [names[column] for column in columns]
    cells: dict[str, _Column] = {}
    try:
        if path.suffix == ".csv":
            if csv_blocks.first_row_is_longer(path):  # pandas takes gigabytes for what is too much
                raise ValueError("rows have more fields than the header")
            # Text throughout: an id 007 is not 7, and times do not pass through floats.
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
            if not isinstance(frame.index, pd.RangeIndex):
                raise ValueError("rows have more fields than the header")
            header = [str(name) for name in frame.columns]
            if "" in frame.iloc[:, -1].values:  # as a row with too few fields leaves it
                _check_whole(path, header, tuple(wanted))
            cells = {column: frame[names[column]].tolist() for column in columns}
        else:
            with open_parquet(path, wanted) as file:
                table = file.read(columns=wanted)
            cells = {column: table[names[column]] for column in columns}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
    return _Table(path, cells)


def _check_whole(path: pathlib.Path, header: list[str], columns: tuple[str, ...]) -> None:
    """Refuses rows that end before a column: pandas reads what is missing as empty fields.

    Raises:
      UserError: a row ends early; names the first one.
    """
    short: list[pyarrow.csv.InvalidRow] = []

    def note(row: pyarrow.csv.InvalidRow) -> str:
        missing = set(header[row.actual_columns :])
        if row.text.strip() and missing.intersection(columns) and not short:
            short.append(row)
        return "skip"

    pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(use_threads=False),  # else rows have no numbers
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=header[:1], column_types={header[0]: pa.string()}, check_utf8=False
        ),
    )
    if short:
        (row,) = short
        missing = next(name for name in header[row.actual_columns :] if name in columns)
        raise UserError(
            f"expected column {missing} in every row of {path}, found row {row.number - 1} without "
            "it; the file may be cut short: write it again, with a comma before an empty field"
        )


def _ids(table: _Table, column: str) -> list[str]:
    """Returns the ids of a column. Raises UserError with the row of a value that is no id."""
    values = table.columns[column]
    names = (
        values if isinstance(values, list) else id_columns.of_column(values, table.where(column))
    )
    return _check_ids(names, table, column)


def _check_ids(
    values: list[str], table: _Table, column: str, rows: Sequence[int] | None = None
) -> list[str]:
    for number, value in enumerate(values):
        size = len(value) if value.isascii() else len(value.encode())
        if _BAD_ID.search(value) or size > ids.LONGEST_BYTES:
            row = number + 1 if rows is None else rows[number]
            shown = repr(value[:40]) + f"... of {size:,} bytes" * (size > ids.LONGEST_BYTES)
            raise UserError(
                f"expected ids of {table.path}, column {column}, without white space, not empty, "
                f"not negative and of {ids.LONGEST_BYTES:,} bytes at most, found {shown} in row "
                f"{row}; mend the file"
            )
    return values


def _texts(table: _Table, column: str) -> list[str]:
    values = table.columns[column]
    if isinstance(values, list):
        return [ids.whole_text(value) for value in values]
    return id_columns.texts_of_column(values, table.where(column))


def _clicked(table: _Table) -> list[list[str]]:
    """Returns the item ids of each cell of clicked_items, each once, in order."""
    values, column = table.columns["clicked_items"], "clicked_items"
    if isinstance(values, list):
        cells = [cell.split() for cell in values]
    elif pa.types.is_nested(values.type):
        if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
            raise UserError(
                f"expected lists or text in {table.where(column)}, found {values.type}; write the "
                "file again"
            )
        cells = id_columns.of_lists(values, table.where(column))
    else:
        texts = id_columns.texts_of_column(values, table.where(column))
        cells = [text.split() for text in texts]
    rows = [row for row, cell in enumerate(cells, 1) for _ in cell]
    _check_ids([item for cell in cells for item in cell], table, column, rows)
    return [list(dict.fromkeys(cell)) for cell in cells]


def _times(table: _Table) -> tuple[np.ndarray, bool]:
    """Returns (times int64, whether they are dates, in milliseconds) of a table.

    Raises:
      UserError: a value is neither a whole number nor a date, or both occur; names the row.
    """
    values = table.columns["time"]
    if not isinstance(values, list):
        kind = values.type
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            if values.null_count:
                values = [(value and str(value)) or "" for value in values.to_pylist()]
                return _times(_Table(table.path, {"time": values}))
            # A date has no cast to milliseconds but through a timestamp.
            return values.cast(pa.timestamp("ms"), safe=False).cast(pa.int64()).to_numpy(), True
        values = id_columns.texts_of_column(values, table.where("time"))
    numbers = np.zeros(len(values), np.int64)
    dates = bool(values) and times.from_iso(values[0]) is not None
    for row, text in enumerate(values):
        try:
            # int() takes 2_000 and spaces too
            time = times.from_iso(text) if dates else int(text) if _TIME.fullmatch(text) else None
            if time is None or abs(time) >= _LARGEST_TIME:
                raise ValueError(text)
            numbers[row] = time
        except ValueError:
            wanted = "ISO 8601 dates, as the first row is," if dates else "whole numbers of 63 bits"
            raise UserError(
                f"expected {wanted} as time of {table.path}, found {text[:40]!r} in row {row + 1}; "
                "write times as integers, or all as dates such as 2024-11-03T14:30:00Z"
            ) from None
    return numbers, dates


def _unit(clicks: np.ndarray, searches: np.ndarray, dates: Sequence[bool], given: str) -> str:
    """Returns the unit of the times.

    Raises:
      UserError: `given`, the setting time_unit, is no unit or does not fit dates.
    """
    if given not in (INFER, *times.UNITS):
        raise UserError(
            f"expected a time_unit of {', '.join((INFER, *times.UNITS))}, found {given!r}; pass one"
        )
    times.check_ranges(clicks, searches, "csv_log")
    if not any(dates):
        return times.unit_of(clicks, searches) if given == INFER else given
    known = [some for some, is_date in zip((clicks, searches), dates, strict=True) if not is_date]
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
        searches that cannot be of one unit.
    """
    split_query = segmenters.segmenter(segmenter)
    names = names_of(columns)
    files = {name: _table_file(data_dir, name) for name in COLUMNS}
    paths = {name: path for name, path in files.items() if path is not None}
    has = check_headers(paths, names)
    tables = {name: _read(path, names[name], has[name]) for name, path in paths.items()}
    clicks, searches = tables["clicks"], tables["searches"]
    click_user, click_item = _ids(clicks, "user"), _ids(clicks, "item")
    (click_time, *_), (search_time, *_) = read_times = _times(clicks), _times(searches)
    unit = _unit(click_time, search_time, [is_date for _, is_date in read_times], time_unit)
    users, sessions = _ids(searches, "user"), None
    if "session" in has["searches"]:
        sessions = _ids(searches, "session")
        _check_sessions(searches, users, sessions)
    clicked = _clicked(searches) if "clicked_items" in has["searches"] else [[] for _ in users]
    begins = search_time
    if "search_session" in has["clicks"]:
        begins, search_time = _join_own_clicks(
            clicks, users, sessions, click_user, click_item, click_time, search_time, clicked
        )
    items, titles = [], None
    if "items" in tables:
        items = _ids(tables["items"], "item")
        if "title" in has["items"]:
            titles = dict(zip(items, _texts(tables["items"], "title"), strict=True))
    events = RawEvents(
        click_user=click_user,
        click_item=click_item,
        click_time=click_time.tolist(),
        search_user=users,
        search_time=search_time.tolist(),
        search_begins=begins.tolist(),
        search_words=[split_query(query) for query in _texts(searches, "query")],
        search_clicks=clicked,
        items=items,
        item_texts=titles,
        time_unit=unit,
        reading=_unmatched(clicked, {*click_item, *items}),
    )
    return build_log("csv_log", events)


def _check_sessions(searches: _Table, users: Sequence[str], sessions: Sequence[str]) -> None:
    pairs = pd.Series(list(zip(users, sessions, strict=True)), dtype=object)
    twice = np.flatnonzero(pairs.duplicated())
    if len(twice):
        user, session = pairs[twice[0]]
        raise UserError(
            f"expected one row a session in {searches.path}, found user {user} session {session} "
            f"again in row {twice[0] + 1}; join its clicked_items in one row"
        )


def _join_own_clicks(
    clicks: _Table,
    search_user: Sequence[str],
    sessions: Sequence[str] | None,
    click_user: Sequence[str],
    click_item: Sequence[str],
    click_time: np.ndarray,
    search_time: np.ndarray,
    clicked: list[list[str]],
) -> tuple[np.ndarray, np.ndarray]:
    """Adds clicks that name their search to its items; returns its begin and end, int64 [S] each.

    The time of such a search is that of its last click, so that no click has it in its history; it
    begins no later than its first one, whatever the clocks say, so that it has none in its own.

    Raises:
      UserError: a click names a session that is not there; names its row.
    """
    if sessions is None:
        raise UserError(
            f"expected sessions in searches for search_session of {clicks.path}, found none; name "
            "their column in config.data.columns"
        )
    rows = {pair: row for row, pair in enumerate(zip(search_user, sessions, strict=True))}
    begins, ends = search_time.copy(), search_time.copy()
    values = clicks.columns["search_session"]
    where = clicks.where("search_session")
    named = values if isinstance(values, list) else id_columns.texts_of_column(values, where)
    for number, session in enumerate(named):
        if not session:
            continue
        row = rows.get((click_user[number], session))
        if row is None:
            raise UserError(
                f"expected a session of searches in {where}, found {session[:40]!r}, which user "
                f"{click_user[number]} does not have, in row {number + 1}; leave it empty where no "
                "search led to the click"
            )
        begins[row] = min(begins[row], click_time[number])
        ends[row] = max(ends[row], click_time[number])
        if click_item[number] not in clicked[row]:
            clicked[row].append(click_item[number])
    return begins, ends


def _unmatched(clicked: Sequence[Sequence[str]], known: set[str]) -> dict[str, Any]:
    """Returns the share of clicked items that neither clicks nor items hold; warns if large."""
    items = [item for row in clicked for item in row]
    if not items:
        return {}
    share = sum(item not in known for item in items) / len(items)
    if share > _MANY_UNMATCHED:
        _LOG.warning(
            "csv_log: %.0f%% of the items in clicked_items are neither in clicks nor in items, as "
            "%r: are the ids of searches written in another way?",
            *(100 * share, next(item for item in items if item not in known)[:40]),
        )
    return {"unmatched_share_of_clicked_items": share}
