"""Anybody's own log, as CSV (with a header line, UTF-8) or parquet; other columns are not read.

    clicks.csv    user,item,time
    searches.csv  user,session,time,query,clicked_items
    items.csv     item,title       optional: items beyond those that occur in the log, their texts

- `user`, `item`, `session`: any text without white space; no empty ones, no negative numbers.
- `time`: a whole number, in one unit for both files (milliseconds, seconds, positions). Rows may
  stand in any order.
- `query`: text. It becomes words by the segmenter of the settings: 'characters' takes runs of
  letters and digits as words in lower case, and each Chinese character as one. May be empty.
- `clicked_items`: the items clicked in the session, separated by spaces; in parquet a list will do.
  May be empty. A session with neither words nor clicks is dropped.
- A session is one row: (user, session) occurs once.

Each file may be NAME.parquet instead of NAME.csv. searches may hold a header only.
tests/data/csv_log is an example of 20 rows.
"""

from __future__ import annotations

import pathlib
import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from core.errors import UserError
from input_pipelines import segmenters
from input_pipelines.log import Log, RawEvents, build_log

_COLUMNS = {
    "clicks": ("user", "item", "time"),
    "searches": ("user", "session", "time", "query", "clicked_items"),
    "items": ("item", "title"),
}
_OPTIONAL = ("items",)
_TIME = re.compile(r"-?[0-9]+")
_BAD_ID = re.compile(r"^$|\s|^-\d")


def _table_file(data_dir: str, name: str) -> pathlib.Path | None:
    for suffix in ("csv", "parquet"):
        path = pathlib.Path(data_dir) / f"{name}.{suffix}"
        if path.is_file():
            return path
    if name in _OPTIONAL:
        return None
    raise UserError(
        f"expected {name}.csv or {name}.parquet in {data_dir}, found neither; write it with the "
        f"columns {','.join(_COLUMNS[name])}"
    )


def raw_files(data_dir: str) -> list[pathlib.Path]:
    """The files read. Raises UserError where one is missing."""
    found = [_table_file(data_dir, name) for name in _COLUMNS]
    return [path for path in found if path is not None]


def _read(path: pathlib.Path, columns: tuple[str, ...]) -> dict[str, list[Any]]:
    """The columns by name: text from CSV; from parquet also numbers, lists and None."""
    try:
        if path.suffix == ".csv":
            # Text throughout: an id 007 is not 7, and times do not pass through floats.
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
            if not isinstance(frame.index, pd.RangeIndex):
                raise ValueError("rows have more fields than the header")
            table = {str(name): frame[name].tolist() for name in frame.columns}
            if "" in frame.iloc[:, -1].values:  # as a row with too few fields leaves it
                _check_whole(path, list(table), columns)
        else:
            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                table = {name: [] for name in names}
                table |= file.read(columns=[n for n in columns if n in names]).to_pydict()
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"expected a whole {path.suffix[1:]} file at {path}, found one that cannot be read "
            f"({reason}); write it again"
        ) from error
    for name in columns:
        if name not in table:
            raise UserError(
                f"expected column {name} in {path}, found {', '.join(table)}; "
                f"give it the columns {','.join(columns)}"
            )
    return table


def _check_whole(path: pathlib.Path, header: list[str], columns: tuple[str, ...]) -> None:
    """Refuses rows that end before a column: pandas reads what is missing as empty fields.

    Raises:
      UserError: there is one; names the first.
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


def _is_missing(value: object) -> bool:
    return value is None or value != value


def _texts(table: dict[str, list[Any]], column: str) -> list[str]:
    return ["" if _is_missing(value) else str(value) for value in table[column]]


def _check_ids(ids: list[str], path: pathlib.Path, column: str) -> list[str]:
    for row, value in enumerate(ids, 1):
        if _BAD_ID.search(value):
            raise UserError(
                f"expected ids of {path}, column {column}, without white space, not empty and not "
                f"negative, found {value!r} in row {row}; mend the file"
            )
    return ids


def _times(table: dict[str, list[Any]], path: pathlib.Path) -> np.ndarray:
    texts = _texts(table, "time")
    times = np.zeros(len(texts), np.int64)
    for row, text in enumerate(texts):
        try:
            if not _TIME.fullmatch(text):  # int() takes 2_000 and spaces too
                raise ValueError(text)
            times[row] = int(text)
        except (ValueError, OverflowError):
            raise UserError(
                f"expected whole numbers of 64 bits as time of {path}, found {text!r} in row "
                f"{row + 1}; write times as integers"
            ) from None
    return times


def _clicked(value: object) -> list[str]:
    """The item ids of one cell, each once, in order."""
    if isinstance(value, list):
        found = [str(item) for item in value]
    else:
        found = [] if _is_missing(value) else str(value).split()
    return list(dict.fromkeys(found))


def read_csv_log(data_dir: str, *, segmenter: str = "characters") -> Log:
    """Reads the files of the module's schema.

    Args:
      segmenter: 'characters' or 'jieba'.

    Raises:
      UserError: a file or column is missing, or a row has too few fields; a value is no id, no
        time; a session occurs twice.
    """
    split_query = segmenters.segmenter(segmenter)
    paths = {name: _table_file(data_dir, name) for name in _COLUMNS}
    tables = {name: _read(path, _COLUMNS[name]) for name, path in paths.items() if path is not None}

    def ids(name: str, column: str) -> list[str]:
        path = paths[name]
        if path is None:
            return []
        return _check_ids(_texts(tables[name], column), path, column)

    clicks, searches = paths["clicks"], paths["searches"]
    assert clicks is not None and searches is not None  # _table_file raises for these two
    users = ids("searches", "user")
    sessions = pd.Series(list(zip(users, ids("searches", "session"), strict=True)), dtype=object)
    twice = np.flatnonzero(sessions.duplicated())
    if len(twice):
        user, session = sessions[twice[0]]
        raise UserError(
            f"expected one row a session in {searches}, found user {user} session {session} again "
            f"in row {twice[0] + 1}; join its clicked_items in one row"
        )
    clicked = [_clicked(value) for value in tables["searches"]["clicked_items"]]
    _check_ids([item for row in clicked for item in row], searches, "clicked_items")
    items = ids("items", "item")
    titles = _texts(tables["items"], "title") if "items" in tables else []
    events = RawEvents(
        click_user=ids("clicks", "user"),
        click_item=ids("clicks", "item"),
        click_time=_times(tables["clicks"], clicks).tolist(),
        search_user=users,
        search_time=_times(tables["searches"], searches).tolist(),
        search_words=[split_query(query) for query in _texts(tables["searches"], "query")],
        search_clicks=clicked,
        items=items,
        item_texts=dict(zip(items, titles, strict=True)) if "items" in tables else None,
    )
    return build_log("csv_log", events)
