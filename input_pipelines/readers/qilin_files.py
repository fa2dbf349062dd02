"""Reads Qilin's files as flat rows: parquet folders as published, or CSVs of the toy data.

Each of search_train, search_test, recommendation_train and recommendation_test is a folder of
parquet files or a file NAME.csv. A row holds a user and a list of impressions; other columns
(embeddings, page times, earlier clicks) are not read. The notes' own table, notes, and the users',
user_feat, are optional.
"""

from __future__ import annotations

import csv
import dataclasses
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.errors import UserError, reason_of
from input_pipelines import id_columns
from input_pipelines.file_bounds import open_parquet

KINDS = ("search", "recommendation")
PARTS = ("train", "test")
SAMPLE_MARK = "SAMPLE"
_NOTE_TEXT = ("note_title", "note_content")
# What user_feat says in words; its other columns are numbers without a name.
_PROFILE = ("gender", "platform", "age", "location")
# Time of an impression that has none.
NO_TIME = np.iinfo(np.int64).max

# kind -> (list column, time field, milliseconds in its unit)
_LISTS = {
    "search": ("search_result_details_with_idx", "search_timestamp", 1000),
    "recommendation": ("rec_result_details_with_idx", "request_timestamp", 1),
}
BATCH_ROWS = 8192

# A cell prints as [{'click': 1, 'page_time': nan, ...} {...}], without commas between dicts.
# Nothing is tried twice (possessive, matched in place): made-up cells take no longer.
_STRING = r"'(?:[^'\\]|\\.)*+'|\"(?:[^\"\\]|\\.)*+\""
_PAIR = re.compile(rf"\s*+'(\w++)':\s*+({_STRING}|[^,'\"{{}}]++)\s*+(?:,\s*+|\Z)")
_DICT = re.compile(rf"\{{((?:{_STRING}|[^{{}}'\"]++)*+)\}}")
_BETWEEN = re.compile(r"[\s,]*+")


@dataclasses.dataclass(frozen=True)
class Rows:
    """Holds some rows of one table; R rows, I impressions.

    Attributes:
      user: int64 [R].
      query: what was searched for, '' in recommendation rows; length R.
      row: int64 [I], row of each impression, ascending.
      note: int64 [I].
      position: float64 [I], NaN where unknown.
      clicked: bool [I].
      time: int64 [I], milliseconds, NO_TIME where missing.
    """

    user: np.ndarray
    query: list[str]
    row: np.ndarray
    note: np.ndarray
    position: np.ndarray
    clicked: np.ndarray
    time: np.ndarray


def table_files(data_dir: str, kind: str, part: str) -> list[pathlib.Path]:
    """Lists the files of one table, sorted.

    Raises:
      UserError: there are none.
    """
    root, name = pathlib.Path(data_dir), f"{kind}_{part}"
    paths = sorted((root / name).glob("*.parquet"))
    if not paths and (root / f"{name}.csv").is_file():
        paths = [root / f"{name}.csv"]
    if not paths:
        raise UserError(
            f"expected {name}/*.parquet or {name}.csv in {data_dir}, found neither; download "
            "Qilin's folders search_train, search_test, recommendation_train, recommendation_test"
        )
    return paths


def raw_files(data_dir: str) -> list[pathlib.Path]:
    """Lists the files that a Qilin log depends on. Raises UserError where a table is missing."""
    files = [f for kind in KINDS for part in PARTS for f in table_files(data_dir, kind, part)]
    files += _optional_files(data_dir, "notes") + _optional_files(data_dir, "user_feat")
    mark = pathlib.Path(data_dir) / SAMPLE_MARK
    return files + ([mark] if mark.exists() else [])


def _optional_files(data_dir: str, name: str) -> list[pathlib.Path]:
    """Lists the files of the table 'notes' or 'user_feat'; none where it was not downloaded."""
    root = pathlib.Path(data_dir)
    paths = sorted((root / name).glob("*.parquet"))
    return paths or [path for path in [root / f"{name}.csv"] if path.is_file()]


def read_note_texts(
    data_dir: str, wanted: np.ndarray, batch_rows: int = BATCH_ROWS
) -> dict[str, str] | None:
    """Reads title and content by id of notes `wanted`, int64 ascending; None without their table.

    Raises:
      UserError: a file cannot be read or lacks a column.
    """
    if not _optional_files(data_dir, "notes"):
        return None
    return {
        note: " ".join(value.strip() for value in values if value.strip())
        for note, *values in _rows_of(data_dir, "notes", "note_idx", _NOTE_TEXT, wanted, batch_rows)
    }


def read_profiles(
    data_dir: str, wanted: np.ndarray, batch_rows: int = BATCH_ROWS
) -> dict[str, dict[str, str]] | None:
    """Reads gender, platform, age and location, where known, of users `wanted`, int64 ascending.

    They stand by id as text; None is returned without a table of users.

    Raises:
      UserError: a file cannot be read or lacks a column.
    """
    if not _optional_files(data_dir, "user_feat"):
        return None
    return {
        user: {
            name: " ".join(value.split())
            for name, value in zip(_PROFILE, values, strict=True)
            if value.strip() not in ("", "unknown")
        }
        for user, *values in _rows_of(
            data_dir, "user_feat", "user_idx", _PROFILE, wanted, batch_rows
        )
    }


def _rows_of(
    data_dir: str, table: str, key: str, names: Sequence[str], wanted: np.ndarray, batch_rows: int
) -> Iterator[tuple[str, ...]]:
    """Yields (id, text, ...) of an optional table's rows whose `key` is wanted; absent is ''."""
    for path in _optional_files(data_dir, table):
        first = 1
        try:
            for batch in _optional_batches(path, [key, *names], batch_rows):
                keys = _ids(batch.column(key), key, path)
                places = np.flatnonzero(np.isin(keys, wanted))
                numbers = (places + first).tolist()
                parts = [
                    id_columns.texts_of_column(
                        batch.column(name).take(places), f"column {name} of {path}", numbers
                    )
                    for name in names
                ]
                first += batch.num_rows
                yield from zip(map(str, keys[places].tolist()), *parts, strict=True)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"expected a whole {path.suffix[1:]} file at {path}, found one that cannot be "
                f"read ({reason_of(error)}); download it again"
            ) from error


def _optional_batches(
    path: pathlib.Path, columns: list[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".parquet":
        with open_parquet(path, columns) as file:
            names = file.schema_arrow.names
            for name in columns:
                if name not in names:
                    raise _missing(path, name, names)
            yield from file.iter_batches(batch_size=batch_rows, columns=columns)
        return
    rows = _csv_rows(path, columns)
    arrays = [pa.array([row[name] for row in rows], pa.string()) for name in columns]
    yield pa.RecordBatch.from_arrays(arrays, names=columns)


def read_rows(data_dir: str, kind: str, part: str, batch_rows: int = BATCH_ROWS) -> Iterator[Rows]:
    """Yields one table in batches of rows: memory holds the needed fields of one batch.

    Args:
      batch_rows: of a parquet file; a CSV file is one batch.

    Raises:
      UserError: a file is missing, cut short, lacks a column, or holds ids that are no ids.
    """
    column, time_field, _ = _LISTS[kind]
    fields = ["note_idx", "position", "click", time_field]
    columns = ["user_idx", "query"] if kind == "search" else ["user_idx"]
    for path in table_files(data_dir, kind, part):
        try:
            if path.suffix == ".csv":
                batches = _csv_batches(path, columns, column, fields)
            else:
                batches = _parquet_batches(path, columns, column, fields, batch_rows)
            for batch in batches:
                yield _flatten(batch, path, kind)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"expected a whole {path.suffix[1:]} file at {path}, found one that cannot be "
                f"read ({reason_of(error)}); download it again"
            ) from error


def _missing(path: pathlib.Path, name: str, found: list[str]) -> UserError:
    return UserError(
        f"expected column {name} in {path}, found {', '.join(found)}; use the files as published"
    )


def _parquet_batches(
    path: pathlib.Path, columns: list[str], column: str, fields: list[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    with open_parquet(path, [*columns, column]) as file:
        schema = file.schema_arrow
        for name in [*columns, column]:
            if name not in schema.names:
                raise _missing(path, name, schema.names)
        listed = schema.field(column).type
        if not (_is_list(listed) and pa.types.is_struct(listed.value_type)):
            raise UserError(
                f"expected column {column} of {path} to be a list of structs, found {listed}; use "
                "the files as published"
            )
        inner = [field.name for field in listed.value_type]
        for name in fields:
            if name not in inner:
                raise _missing(path, f"{column}.{name}", inner)
        paths = [file.schema.column(i).path for i in range(len(file.schema))]
        leaves = [p for p in paths if p.startswith(f"{column}.") and p.split(".")[-1] in fields]
        yield from file.iter_batches(batch_size=batch_rows, columns=columns + leaves)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _csv_batches(
    path: pathlib.Path, columns: list[str], column: str, fields: list[str]
) -> Iterator[pa.RecordBatch]:
    rows = _csv_rows(path, [*columns, column])
    arrays: list[Any] = [pa.array([row[name] for row in rows], pa.string()) for name in columns]
    cells = [
        parse_cell(row[column], fields, f"row {number} of {path}")
        for number, row in enumerate(rows, 1)
    ]
    arrays.append(
        pa.array(cells, pa.list_(pa.struct([pa.field(name, pa.float64()) for name in fields])))
    )
    yield pa.RecordBatch.from_arrays(arrays, names=[*columns, column])


def _csv_rows(path: pathlib.Path, columns: list[str]) -> list[dict[str, str]]:
    limit = csv.field_size_limit(2**31 - 1)  # cells with embeddings exceed the default
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            names = list(reader.fieldnames or [])
            for name in columns:
                if name not in names:
                    raise _missing(path, name, names)
            return list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise OSError(reason_of(error)) from error
    finally:
        csv.field_size_limit(limit)


def parse_cell(cell: str | None, fields: list[str], where: str) -> list[dict[str, float]]:
    """Returns the numbers `fields` of each impression of a printed list; evaluates nothing.

    Raises:
      UserError: the cell is not a printed list of flat dicts with these fields.
    """
    text = (cell or "").strip()
    impressions = []
    try:
        if not (text.startswith("[") and text.endswith("]")):
            raise ValueError("no printed list of dicts")
        for body in _in_turn(_DICT, text[1:-1], "list of dicts"):
            pairs = {pair[1]: pair[2] for pair in _in_turn(_PAIR, body[1], "dict")}
            impressions.append({name: _number(pairs[name]) for name in fields})
    except (ValueError, KeyError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"expected a list like [{{'{fields[0]}': 1, ...}} {{...}}] in {where}, found {reason}; "
            "use the files as published"
        ) from None
    return impressions


def _in_turn(pattern: re.Pattern[str], text: str, what: str) -> Iterator[re.Match[str]]:
    """Yields the matches that make up a text, commas and spaces between them aside.

    Raises:
      ValueError: something else stands there.
    """
    place = 0
    while True:
        between = _BETWEEN.match(text, place)
        place = between.end() if between else place
        if place == len(text):
            return
        match = pattern.match(text, place)
        if match is None:
            raise ValueError(f"no printed {what}: {text[place : place + 40]!r}")
        yield match
        place = match.end()


def _number(text: str) -> float:
    return float("nan") if text.strip() == "None" else float(text)


def _flatten(batch: pa.RecordBatch, path: pathlib.Path, kind: str) -> Rows:
    column, time_field, unit = _LISTS[kind]
    lists = batch.column(column)
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    impressions = lists.flatten()

    def field(name: str) -> np.ndarray:
        values = pc.cast(pc.struct_field(impressions, name), pa.float64())
        return values.to_numpy(zero_copy_only=False)

    times = field(time_field)
    known = np.isfinite(times)
    query = []
    if kind == "search":
        query = id_columns.texts_of_column(batch.column("query"), f"column query of {path}")
    return Rows(
        user=_ids(batch.column("user_idx"), "user_idx", path),
        query=query or [""] * len(batch),
        row=np.repeat(np.arange(len(batch)), lengths),
        note=_ids(pc.struct_field(impressions, "note_idx"), "note_idx", path),
        position=field("position"),
        clicked=field("click") == 1,
        time=np.where(known, np.rint(np.where(known, times, 0) * unit), 0).astype(np.int64)
        + np.where(known, 0, NO_TIME),
    )


def _ids(column: pa.Array, name: str, path: pathlib.Path) -> np.ndarray:
    if column.null_count:
        raise UserError(
            f"expected {name} of {path} in every row, found {column.null_count} missing; use the "
            "files as published"
        )
    if pa.types.is_boolean(column.type):
        raise UserError(
            f"expected whole numbers as {name} of {path}, found {column.type}; use the files as "
            "published"
        )
    try:
        numbers = pc.cast(column, pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"expected whole numbers as {name} of {path}, found others ({reason_of(error)}); use "
            "the files as published"
        ) from None
    if len(numbers) and numbers.min() < 0:
        raise UserError(
            f"expected {name} of {path} to be 0 or more, found {numbers.min()}; use the files as "
            "published"
        )
    return numbers
