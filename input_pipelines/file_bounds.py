"""Checks the bounds of raw files before reading: a small file can unpack to more than memory has.

Lines of text may be as long as `core.text_lines.LONGEST_LINE`. A parquet file may hold as many
values, and unpack to as many bytes, as its own size justifies: sizes of columns of one value are
mere numbers in it, and one long text can be named millions of times.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.errors import UserError, reason_of
from core.text_lines import LONGEST_LINE

_CHUNK_BYTES = 4 * 2**20
_LINES = (".csv", ".tsv", ".jsonl")
# Endings of CSV that is packed, and what unpacks it.
UNPACKED = {".gz": "gzip", ".zst": "zstd"}
# Values of a column, and bytes of text, that a file of any size may hold, and that each byte of it
# justifies. Published files hold less than one value in ten bytes.
_FREE_VALUES, _VALUES_A_BYTE = 2**20, 1
_FREE_BYTES, _BYTES_A_BYTE = 2**26, 50
_FREE_TEXT, _TEXT_A_BYTE = 2**28, 256
_BATCH_ROWS = 2**16


def check_lines(paths: Iterable[pathlib.Path]) -> None:
    """Checks that no line of the files in CSV, TSV or JSON lines is too long.

    Files that are packed (`UNPACKED`) are unpacked for it.

    Raises:
      UserError: a line is longer than `LONGEST_LINE` bytes, or a packed file is cut or unpacks to
        more than its size justifies; names file and line.
    """
    for path in paths:
        if path.suffix in _LINES or (path.suffix in UNPACKED and ".csv" in path.suffixes):
            try:
                _check_lines(path)
            except OSError as error:
                if path.suffix not in UNPACKED or error.errno:
                    raise
                raise UserError(
                    f"expected a whole {path.suffix[1:]} file at {path}, found one that cannot be "
                    f"unpacked ({reason_of(error)}); write it again"
                ) from None


def _check_lines(path: pathlib.Path) -> None:
    number, length, total = 1, 0, 0
    packed = UNPACKED.get(path.suffix)
    most = _FREE_TEXT + _TEXT_A_BYTE * path.stat().st_size
    with pa.input_stream(str(path), compression=packed) as file:
        while chunk := file.read(_CHUNK_BYTES):
            total += len(chunk)
            if packed and total > most:
                raise _too_much(path, total, "bytes unpacked", most)
            first = chunk.find(b"\n")
            length += len(chunk) if first < 0 else first
            if length > LONGEST_LINE:
                raise UserError(
                    f"expected lines of at most {LONGEST_LINE:,} bytes in {path}, found a longer "
                    f"one, line {number}; use the file as published"
                )
            if first >= 0:
                number += chunk.count(b"\n")
                length = len(chunk) - chunk.rfind(b"\n") - 1


def open_parquet(path: pathlib.Path, columns: Sequence[str]) -> pq.ParquetFile:
    """Opens a parquet file once its size justifies its values and its text in `columns`.

    Raises:
      UserError: the file promises more than its size justifies.
      pa.ArrowException, OSError: the file cannot be read.
    """
    file = pq.ParquetFile(path)
    try:
        _check_parquet(path, file.metadata, columns)
    except BaseException:
        file.close()
        raise
    return file


def _too_much(path: pathlib.Path, found: int, what: str, most: int) -> UserError:
    return UserError(
        f"expected at most {most:,} {what} in {path}, of {path.stat().st_size:,} bytes, found "
        f"{found:,}; use the file as published"
    )


def _check_parquet(path: pathlib.Path, about: pq.FileMetaData, columns: Sequence[str]) -> None:
    size = path.stat().st_size
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    most = _FREE_VALUES + _VALUES_A_BYTE * size
    texts: dict[str, int] = {}
    unpacked = 0
    values = [about.num_rows]
    for place in range(about.num_columns):
        chunks = [group.column(place) for group in groups]
        values.append(sum(chunk.num_values for chunk in chunks))
        unpacked += sum(chunk.total_uncompressed_size for chunk in chunks)
        leaf = about.schema.column(place)
        if leaf.physical_type == "BYTE_ARRAY" and leaf.path.split(".")[0] in columns:
            # At the worst each value is the whole of what the column holds.
            texts[leaf.path] = sum(c.num_values * c.total_uncompressed_size for c in chunks)
    if max(values) > most:
        raise _too_much(path, max(values), "values a column", most)
    if unpacked > _FREE_BYTES + _BYTES_A_BYTE * size:
        raise _too_much(path, unpacked, "bytes unpacked", _FREE_BYTES + _BYTES_A_BYTE * size)
    longest = _FREE_TEXT + _TEXT_A_BYTE * size
    if sum(texts.values()) > longest:
        _check_text(path, list(texts), longest)


def _check_text(path: pathlib.Path, leaves: list[str], most: int) -> None:
    """Refuses too much text; sums its bytes without unpacking it, as places in dictionaries."""
    total = 0
    with pq.ParquetFile(path, read_dictionary=leaves) as file:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=leaves):
            for column in batch.columns:
                total += _text_bytes(column)
            if total > most:
                raise _too_much(path, total, "bytes of text", most)


def _text_bytes(column: pa.Array) -> int:
    kind = column.type
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(column.dictionary)
        return pc.sum(pc.take(lengths, column.indices).cast(pa.int64())).as_py() or 0
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _text_bytes(column.flatten())
    if pa.types.is_struct(kind):
        return sum(_text_bytes(part) for part in column.flatten())
    return column.nbytes
