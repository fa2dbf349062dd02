"""Finds the files of each table of `csv_log`, and reads them by blocks of Arrow columns.

A table is one file (clicks.parquet, clicks.csv, clicks.csv.gz, clicks.csv.zst) or a folder of
shards of one format, at any depth. Names that begin with . or _ are no shards, as elsewhere (such
as _SUCCESS). A folder NAME=VALUE below the table's gives its shards a column of that name, as text.
Shards that are numbered, as part-00003-of-00010, must all be there.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd
import pyarrow as pa
import pyarrow.csv

from core.errors import UserError
from input_pipelines.file_bounds import UNPACKED, open_parquet
from input_pipelines.readers import csv_blocks

CSV = (".csv", *(f".csv{packed}" for packed in UNPACKED))
PARQUET = ".parquet"
# Rows of a block: finding the distinct names of one costs the more, the fewer it has.
_BLOCK_ROWS = 2**22
_BATCH_ROWS = 2**20
_CSV_BYTES = 2**24
_OF = re.compile(r"(.*?)(\d+)-of-(\d+)(.*)")


@dataclasses.dataclass(frozen=True)
class Shard:
    """Names a file of a table.

    Attributes:
      partition: the columns that its folders name, with their values.
    """

    path: pathlib.Path
    partition: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def is_csv(self) -> bool:
        return self.path.name.endswith(CSV)


@dataclasses.dataclass(frozen=True)
class Block:
    """Holds consecutive rows of a shard.

    Attributes:
      first_row: the number of the first one, from 1.
      columns: by the file's names.
    """

    shard: Shard
    first_row: int
    columns: Mapping[str, pa.Array]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


def shards_of(data_dir: str, table: str) -> list[Shard]:
    """Lists the files of a table, in the order of their names; none where it is not there.

    Raises:
      UserError: a folder of shards without one, with another file or another format, or that lacks
        a numbered one.
    """
    root = pathlib.Path(data_dir)
    for suffix in (".csv", PARQUET, *CSV[1:]):
        if (path := root / f"{table}{suffix}").is_file():
            return [Shard(path)]
    folder = root / table
    if not folder.is_dir():
        return []
    shards = [Shard(folder / name, _partition(name.parts[:-1])) for name in sorted(_names(folder))]
    for shard in shards:
        if not shard.path.name.endswith((*CSV, PARQUET)):
            raise UserError(
                f"expected shards in {', '.join((*CSV, PARQUET))} in {folder}, found "
                f"{shard.path.relative_to(folder)}; move it away, or begin its name with _"
            )
    if not shards:
        raise UserError(f"expected shards of {table} in {folder}, found none; write them there")
    other = next((shard for shard in shards if shard.is_csv != shards[0].is_csv), None)
    if other:
        raise UserError(
            f"expected all shards in {folder} as CSV or all as parquet, found {shards[0].path} and "
            f"{other.path}; write them in one format"
        )
    _check_numbered(folder, shards)
    return shards


def _names(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] not in "._"]
        for name in files:
            if name[0] not in "._":
                yield (pathlib.Path(place) / name).relative_to(folder)


def _partition(folders: Sequence[str]) -> dict[str, str]:
    pairs = [name.split("=", 1) for name in folders if "=" in name]
    return {urllib.parse.unquote(name): urllib.parse.unquote(value) for name, value in pairs}


def _check_numbered(folder: pathlib.Path, shards: Sequence[Shard]) -> None:
    """Raises UserError where one of the shards NUMBER-of-COUNT is not there."""
    numbers: dict[tuple[str, int, str], set[int]] = {}
    for shard in shards:
        if match := _OF.fullmatch(shard.path.name):
            begin, number, count, end = match.groups()
            key = (str(shard.path.parent / begin), int(count), end)
            numbers.setdefault(key, set()).add(int(number))
    for (begin, count, end), there in numbers.items():
        if missing := sorted(set(range(min(count, 10**6))) - there):
            raise UserError(
                f"expected {count} shards {begin}*-of-*{end} in {folder}, found {len(there)}: "
                f"number {missing[0]} is missing; bring all of them"
            )


def header(shard: Shard) -> dict[str, str]:
    """Returns the shard's columns in order, each with its kind, '' in CSV and of partitions.

    A name that occurs twice has the kind '2 times'.

    Raises:
      ValueError, OSError, pa.ArrowException: the file cannot be read.
    """
    if shard.is_csv:
        named = {name: "" for name in csv_blocks.checked_header(shard.path)}
        written = csv_blocks.header_of(shard.path)
    else:
        with open_parquet(shard.path, []) as file:
            schema = file.schema_arrow
            named = {field.name: _kind(field.type) for field in schema}
            written = list(schema.names)
    named |= {n: f"{written.count(n)} times" for n in named if written.count(n) > 1}
    return {name: "" for name in shard.partition} | named


def _kind(kind: pa.DataType) -> str:
    """Names what a column holds: types of one kind may differ from shard to shard."""
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    tests = {
        "text": (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary),
        "whole numbers": (pa.types.is_integer,),
        "fractions": (pa.types.is_floating,),
        "dates": (pa.types.is_timestamp, pa.types.is_date),
    }
    for name, some in tests.items():
        if any(test(kind) for test in some):
            return name
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"lists of {_kind(kind.value_type)}"
    return str(kind)


def read_blocks(
    shard: Shard, columns: Sequence[str], block_rows: int = _BLOCK_ROWS
) -> Iterator[Block]:
    """Yields a shard's rows with the wanted columns, some million at a time.

    Args:
      block_rows: rows of a block at least, but for the last.

    Raises:
      UserError: a row of CSV ends before a wanted column.
      ValueError, OSError, pa.ArrowException: the file cannot be read.
    """
    wanted = [name for name in dict.fromkeys(columns) if name not in shard.partition]
    tables = (_csv_tables if shard.is_csv else _parquet_tables)(shard.path, wanted, block_rows)
    row = 1
    for table in tables:
        size = table.num_rows
        cells = {name: _one(table[name]) for name in wanted}
        cells |= {
            name: pa.repeat(pa.scalar(value, pa.large_string()), size)
            for name, value in shard.partition.items()
            if name in columns
        }
        yield Block(shard, row, cells)
        row += size


def _one(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # no chunk, or too large for one
        return pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], column.type)
    return whole


def _tables_of(batches: Iterable[pa.RecordBatch], block_rows: int) -> Iterator[pa.Table]:
    """Joins batches to tables of `block_rows` rows at least, but for the last."""
    some: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        some.append(batch)
        rows += batch.num_rows
        if rows >= block_rows:
            yield pa.Table.from_batches(some)
            some, rows = [], 0
    if some:
        yield pa.Table.from_batches(some)


def _parquet_tables(
    path: pathlib.Path, wanted: Sequence[str], block_rows: int
) -> Iterator[pa.Table]:
    with open_parquet(path, wanted) as file:
        batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=list(wanted))
        yield from _tables_of(batches, block_rows)


def _csv_tables(path: pathlib.Path, wanted: Sequence[str], block_rows: int) -> Iterator[pa.Table]:
    """Yields tables of text; pandas reads on where Arrow finds a row with too few fields.

    pandas alone would do, at a tenth of the speed.
    """
    read = 0
    try:
        if len(csv_blocks.header_of(path)) == 1:  # of a blank line Arrow makes a value
            raise ValueError
        for table in _arrow_tables(path, wanted, block_rows):
            read += table.num_rows
            yield table
        return
    except (ValueError, OSError, pa.ArrowException):
        pass
    yield from _pandas_tables(path, wanted, read)


def _arrow_tables(path: pathlib.Path, wanted: Sequence[str], block_rows: int) -> Iterator[pa.Table]:
    with csv_blocks.opened(path) as file:
        reader = pyarrow.csv.open_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(block_size=_CSV_BYTES, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(wanted),
                column_types=dict.fromkeys(wanted, pa.large_string()),
                strings_can_be_null=False,
            ),
        )
        yield from _tables_of(reader, block_rows)


def _pandas_tables(path: pathlib.Path, wanted: Sequence[str], read: int) -> Iterator[pa.Table]:
    """Yields what follows the first `read` rows, by the rules of `pandas.read_csv`."""
    if csv_blocks.first_row_is_longer(path):  # pandas takes gigabytes for what is too much
        raise ValueError("rows have more fields than the header")
    start, whole = 0, False
    # Text throughout: an id 007 is not 7, and times do not pass through floats.
    with (
        csv_blocks.opened(path) as file,
        pd.read_csv(
            file, dtype=str, keep_default_na=False, encoding="utf-8", chunksize=_BATCH_ROWS
        ) as frames,
    ):
        for frame in frames:
            if not isinstance(frame.index, pd.RangeIndex):
                raise ValueError("rows have more fields than the header")
            names = [str(name) for name in frame.columns]
            # As a row with too few fields leaves it.
            if not whole and "" in frame.iloc[:, -1].values:
                check_whole(path, names, tuple(wanted))
                whole = True
            rest = frame.iloc[max(read - start, 0) :]
            start += len(frame)
            columns = [pa.array(rest[n].to_numpy(object), pa.large_string()) for n in wanted]
            yield pa.table(columns, names=list(wanted))


def check_whole(path: pathlib.Path, names: list[str], columns: tuple[str, ...]) -> None:
    """Refuses rows that end before a column: pandas reads what is missing as empty fields.

    Raises:
      UserError: a row ends early; names the first one.
    """
    short: list[pyarrow.csv.InvalidRow] = []

    def note(row: pyarrow.csv.InvalidRow) -> str:
        missing = set(names[row.actual_columns :])
        if row.text.strip() and missing.intersection(columns) and not short:
            short.append(row)
        return "skip"

    with csv_blocks.opened(path) as file:
        pyarrow.csv.read_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(use_threads=False),  # else rows have no numbers
            parse_options=pyarrow.csv.ParseOptions(
                newlines_in_values=True, invalid_row_handler=note
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=names[:1], column_types={names[0]: pa.string()}, check_utf8=False
            ),
        )
    if short:
        (row,) = short
        missing = next(name for name in names[row.actual_columns :] if name in columns)
        raise UserError(
            f"expected column {missing} in every row of {path}, found row {row.number - 1} without "
            "it; the file may be cut short: write it again, with a comma before an empty field"
        )
