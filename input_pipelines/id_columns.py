"""Turns columns of Arrow into ids and texts, by the rule of `ids`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from input_pipelines import ids


def of_column(column: pa.Array | pa.ChunkedArray, where: str) -> list[str]:
    """Returns the ids of an Arrow column, like `ids.of_values` but a whole column at a time."""
    column = _plain(column)
    kind = column.type
    if pa.types.is_floating(kind) and kind != pa.float16():
        values = column.cast(pa.float64())
        numbers = np.asarray(values.to_numpy(zero_copy_only=False), np.float64)
        whole = np.isfinite(numbers) & (np.rint(numbers) == numbers)
        if not values.null_count and np.all(whole & (np.abs(numbers) <= ids.LARGEST_FLOAT)):
            column = pa.array(numbers.astype(np.int64))
    if pa.types.is_integer(column.type) and not column.null_count:
        return column.cast(pa.string()).to_pylist()
    return ids.of_values(_python_values(column), where)


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
