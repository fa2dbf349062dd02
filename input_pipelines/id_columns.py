"""Turns columns of Arrow into ids and texts, by the rule of `ids`.

`coded` and `coded_texts` do so for the distinct values of a column alone, for millions of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from input_pipelines import ids


def of_column(column: pa.Array | pa.ChunkedArray, where: str) -> list[str]:
    """Returns the ids of an Arrow column, like `ids.of_values` but a whole column at a time."""
    column = _integers_of_floats(_plain(column))
    if pa.types.is_integer(column.type) and not column.null_count:
        return column.cast(pa.string()).to_pylist()
    return ids.of_values(_python_values(column), where)


def _integers_of_floats(column: pa.Array) -> pa.Array:
    """Returns whole floats as integers; a column that has others as it is."""
    kind = column.type
    if not pa.types.is_floating(kind) or kind == pa.float16() or column.null_count:
        return column
    numbers = np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
    whole = np.isfinite(numbers) & (np.rint(numbers) == numbers)
    if np.all(whole & (np.abs(numbers) <= ids.LARGEST_FLOAT)):
        return pa.array(numbers.astype(np.int64))
    return column


def of_lists(column: pa.Array | pa.ChunkedArray, where: str) -> list[list[str]]:
    """Returns the ids of the list in each cell of an Arrow column; a null cell has none.

    Raises:
      UserError: a value in a list is no id; names its row.
    """
    cells = enumerate(column.to_pylist(), 1)
    return [ids.of_values(cell or (), where, [row] * len(cell or ())) for row, cell in cells]


def texts_of_column(
    column: pa.Array | pa.ChunkedArray, where: str, rows: Sequence[int] | None = None
) -> list[str]:
    """Returns `ids.texts_of` an Arrow column."""
    return ids.texts_of(_python_values(_plain(column)), where, rows)


def coded(
    column: pa.Array | pa.ChunkedArray, where: str, first_row: int = 1
) -> tuple[np.ndarray, pa.LargeStringArray]:
    """Returns (codes int32 [n], distinct ids) of an Arrow column: row i has the id ids[codes[i]].

    Args:
      first_row: the number of the column's first row, for messages.

    Raises:
      UserError: a value is no id; names its row.
    """
    column = _integers_of_floats(_plain(column))
    names = _fast_names(column)
    if names is None or not _are_ids(names[1]):
        values = _python_values(column)
        texts = ids.of_values(values, where, range(first_row, first_row + len(values)))
        names = _encoded(pa.array(texts, pa.large_string()))
    return names


def coded_texts(
    column: pa.Array | pa.ChunkedArray, where: str, first_row: int = 1
) -> tuple[np.ndarray, pa.LargeStringArray]:
    """Returns (codes int32 [n], distinct texts) of an Arrow column, like `coded`.

    Raises:
      UserError: a value is no text; names its row.
    """
    column = _plain(column)
    if _is_text(column.type) and column.null_count:
        column = pc.fill_null(column, "")
    names = _fast_names(column)
    if names is None:
        values = _python_values(column)
        texts = ids.texts_of(values, where, range(first_row, first_row + len(values)))
        names = _encoded(pa.array(texts, pa.large_string()))
    return names


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _fast_names(column: pa.Array) -> tuple[np.ndarray, pa.LargeStringArray] | None:
    """Returns the codes and names of text in UTF-8 or whole numbers; None of all else."""
    if column.null_count or not (_is_text(column.type) or pa.types.is_integer(column.type)):
        return None
    codes, distinct = _encoded(column)
    if _is_text(column.type):
        try:
            distinct.validate(full=True)
        except pa.ArrowInvalid:
            return None
    return codes, distinct.cast(pa.large_string())


def _encoded(column: pa.Array) -> tuple[np.ndarray, pa.Array]:
    encoded = column.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return np.array(encoded.indices.to_numpy(zero_copy_only=False), np.int32), encoded.dictionary


def _are_ids(names: pa.LargeStringArray) -> bool:
    """Tells whether text is no id that `ids.of_value` would refuse."""
    lengths = pc.binary_length(names).to_numpy(zero_copy_only=False)
    if len(names) and (lengths.min() < 1 or lengths.max() > ids.LONGEST_BYTES):
        return False
    breaks = pc.any(pc.match_substring_regex(names, r"[\n\r]")) if _has_odd(names, 32) else None
    return not (breaks is not None and breaks.as_py())


def _has_odd(names: pa.LargeStringArray, below: int) -> bool:
    """Tells whether the names have a byte below one, or of a character that is not ASCII."""
    flat = flat_text(names)[1]
    return bool(len(flat)) and bool(((flat < below) | (flat > 127)).any())


def flat_text(names: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (where each of n texts begins and the last one ends int64 [n+1], their UTF-8)."""
    if not len(names):
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    _, offsets, data = names.buffers()
    ends = np.frombuffer(offsets, np.int64)[names.offset : names.offset + len(names) + 1]
    flat = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return ends - ends[0], flat[ends[0] : ends[-1]]


# What `str.isspace` counts as white space, and a sign before a digit.
_ODD_ID = r"[\x{9}-\x{d}\x{1c}-\x{1f}\x{85}\p{Z}]|^-\p{Nd}"


def odd_names(names: pa.LargeStringArray) -> np.ndarray:
    """Tells which names are empty, too long, negative numbers or have white space, bool [n]."""
    ends, flat = flat_text(names)
    lengths = np.diff(ends)
    odd = (lengths < 1) | (lengths > ids.LONGEST_BYTES)
    if _has_odd(names, 33) or (flat[ends[:-1][lengths > 0]] == ord("-")).any():
        odd |= pc.match_substring_regex(names, _ODD_ID).to_numpy(zero_copy_only=False)
    return odd


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Returns one array without a dictionary."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # no chunk, or too large for one
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0)
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    return column


def _python_values(column: pa.Array) -> list[Any]:
    """Returns Python's values; text that is no UTF-8 stays binary, and is refused by row."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            large = pa.types.is_large_string(kind)
            return column.cast(pa.large_binary() if large else pa.binary()).to_pylist()
    return column.to_pylist()
