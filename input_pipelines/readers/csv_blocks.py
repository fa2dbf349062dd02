"""Reads large CSV files by blocks of columns: memory holds one block, Python sees no single row.

Rows count from 1 below the header. A malformed row ends in one line that names it, wherever in
the file it stands.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from core.errors import UserError, reason_of
from input_pipelines.file_bounds import UNPACKED

# (what is being done, share of it done in [0, 1]).
Report = Callable[[str, float], None]

ID = pa.int64()
# Published times print as 1684742000000.0; doubles hold whole numbers up to 2^53 exactly.
TIME = pa.float64()
TEXT = pa.dictionary(pa.int32(), pa.string())

BLOCK_BYTES = 16 << 20
_LARGEST_TIME = 2.0**53
_HEADER_CHARACTERS = 1 << 20
_MOST_COLUMNS = 10_000


def silent(what: str, share: float) -> None:
    """Shows nothing: the `Report` where none is wanted."""


@dataclasses.dataclass(frozen=True)
class Block:
    """Holds consecutive rows of a file.

    Attributes:
      first_row: number of the first one.
      columns: name -> int64 [n] for ID and TIME columns, a dictionary array for TEXT.
    """

    first_row: int
    columns: dict[str, np.ndarray | pa.DictionaryArray]


def read_blocks(
    path: pathlib.Path,
    columns: Mapping[str, pa.DataType],
    report: Report = silent,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[Block]:
    """Yields the named columns of a CSV file with a header; other columns are not converted.

    Args:
      columns: name -> ID, TIME or TEXT.
      report: told the file's name and the share of its bytes read.
      block_bytes: of the file that one block holds.

    Raises:
      UserError: no such file, a missing column, a row with too few or too many fields, a value
        that is no whole number (ids: from 0); names the row.
    """
    if not path.is_file():
        raise UserError(f"expected a file {path}, found none; pass the folder that holds it")
    _check_header(path, columns)
    size = max(path.stat().st_size, 1)
    row = 1
    with pa.OSFile(str(path)) as file:
        try:
            reader = _open(file, columns, block_bytes)
            for number, batch in enumerate(reader, 1):
                converted = {n: _values(batch.column(n), t) for n, t in columns.items()}
                if any(values is None for values in converted.values()):
                    raise pa.ArrowInvalid("a value out of range")
                yield Block(row, {n: v for n, v in converted.items() if v is not None})
                row += batch.num_rows
                # Not the file's position, which runs ahead of what is parsed.
                report(path.name, min(number * block_bytes / size, 1.0))
        except pa.ArrowException as error:
            raise _explain(path, columns, error) from None


def _open(
    file: pa.NativeFile,
    columns: Mapping[str, pa.DataType],
    block_bytes: int,
    on_odd_row: Callable | None = None,
) -> pyarrow.csv.CSVStreamingReader:
    return pyarrow.csv.open_csv(
        file,
        read_options=pyarrow.csv.ReadOptions(block_size=block_bytes, use_threads=False),
        parse_options=pyarrow.csv.ParseOptions(invalid_row_handler=on_odd_row),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=list(columns),
            column_types=dict(columns),
            null_values=[""],
            check_utf8=False,
        ),
    )


def _values(column: pa.Array, kind: pa.DataType) -> np.ndarray | pa.DictionaryArray | None:
    """Returns a block's values of a column; None where a number is missing or out of range."""
    if kind == TEXT:
        return column
    if column.null_count:
        return None
    values = column.to_numpy(zero_copy_only=False)
    if kind == TIME:
        if len(values) and not (
            np.all(np.abs(values) <= _LARGEST_TIME) and np.all(values == np.rint(values))
        ):
            return None
        return values.astype(np.int64)
    return None if len(values) and values.min() < 0 else values


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[pa.NativeFile]:
    """Opens a file to be read from its start, unpacked where its name ends in .gz or .zst.

    What it unpacks to is bounded (`file_bounds.check_lines`).
    """
    with pa.input_stream(str(path), compression=UNPACKED.get(path.suffix)) as file:
        yield file


def _first_lines(path: pathlib.Path) -> io.StringIO:
    """Returns as much of a file as may hold its header and first row."""
    with opened(path) as file:
        text = file.read(_HEADER_CHARACTERS).decode("utf-8-sig", "replace")
    return io.StringIO(text, newline="")


def header_of(path: pathlib.Path) -> list[str]:
    """Returns the names of the first line as they stand, spaces too; [] where this is no CSV."""
    try:
        return next(csv.reader([_first_lines(path).readline()]), [])
    except csv.Error:
        return []


def checked_header(path: pathlib.Path) -> list[str]:
    """Returns the names of the columns as pandas and `header_of` find them.

    Raises:
      ValueError, OSError: there is no header, or one of too many columns.
    """
    written = header_of(path)
    if len(written) > _MOST_COLUMNS:  # pandas takes minutes for a line of a million
        raise ValueError(f"more than {_MOST_COLUMNS:,} columns")
    with opened(path) as file:
        frame = pd.read_csv(file, dtype=str, nrows=0, encoding="utf-8")
    names = [str(name) for name in frame.columns]
    # pandas renames the second of two columns of one name; blank lines it skips.
    return written if len(written) == len(names) else names


def first_row_is_longer(path: pathlib.Path) -> bool:
    """Tells whether the first row has more fields than the header; False where this is no CSV."""
    try:
        header, *rows = itertools.islice(filter(None, csv.reader(_first_lines(path))), 2)
    except (csv.Error, ValueError):
        return False
    return bool(rows) and len(rows[0]) > len(header)


def _check_header(path: pathlib.Path, columns: Iterable[str]) -> None:
    """Raises UserError where columns are missing, naming all of them, or one stands there twice."""
    header = header_of(path)
    missing = [name for name in columns if name not in header]
    if missing:
        listed = ", ".join(name if name == name.strip() else repr(name) for name in header)[:300]
        raise UserError(
            f"expected column{'s' * (len(missing) > 1)} {', '.join(missing)} in {path}, found "
            f"{listed or 'an empty file'}; use the file as published"
        )
    twice = [name for name in columns if header.count(name) > 1]
    if twice:
        raise UserError(
            f"expected column {twice[0]} in {path} once, found it {header.count(twice[0])} times; "
            "use the file as published"
        )


def _explain(path: pathlib.Path, columns: Mapping[str, pa.DataType], error: Exception) -> UserError:
    """Returns the error that names the first bad row, by reading the file again as text."""
    odd_rows: list[pyarrow.csv.InvalidRow] = []

    def keep(odd: pyarrow.csv.InvalidRow) -> str:
        odd_rows.append(odd)
        return "error"

    row = 1
    with pa.OSFile(str(path)) as file:
        try:
            for batch in _open(file, dict.fromkeys(columns, pa.string()), BLOCK_BYTES, keep):
                for name, kind in columns.items():
                    place = None if kind == TEXT else _first_odd(batch.column(name), kind)
                    if place is not None:
                        what = "a whole number" if kind == TIME else "an id, a whole number from 0"
                        return UserError(
                            f"expected {what} in column {name} of {path}, found "
                            f"{batch.column(name)[place].as_py() or ''!r} in row {row + place}; "
                            "mend the file"
                        )
                row += batch.num_rows
        except pa.ArrowException as second:
            error = second
    if odd_rows:
        odd = odd_rows[0]
        number = f" in row {odd.number - 1}" if odd.number is not None else ""
        return UserError(
            f"expected {odd.expected_columns} fields a row in {path}, found {odd.actual_columns}"
            f"{number}; the file may be cut short: fetch it again"
        )
    reason = reason_of(error)
    return UserError(f"expected a CSV file at {path}, found one that does not read ({reason})")


def _first_odd(texts: pa.StringArray, kind: pa.DataType) -> int | None:
    """Returns the first row of a block that is no number of its kind."""
    low, high = 0, len(texts)
    if _casts(texts, kind):
        return None
    # Halving: the first half that does not convert holds the first odd value.
    while high - low > 1:
        middle = (low + high) // 2
        if _casts(texts.slice(low, middle - low), kind):
            low = middle
        else:
            high = middle
    return low


def _casts(texts: pa.StringArray, kind: pa.DataType) -> bool:
    try:
        cleaned = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
        return _values(cleaned.cast(kind), kind) is not None
    except pa.ArrowInvalid:
        return False
