"""Turns columns of Arrow into times: whole numbers, or dates, which become milliseconds."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.errors import UserError
from input_pipelines import id_columns, times

_TIME = re.compile(r"-?[0-9]+")
_LARGEST_TIME = 2**62  # the difference of two has 64 bits
_LARGEST_FLOAT = 2.0**53
# The dates that Arrow reads as `times.from_iso` does: none with a comma, or an hour alone.
_PLAIN_ISO = r"^[1-9]\d{3}-\d{2}-\d{2}([T ]\d{2}:\d{2}:\d{2}(\.\d{1,6})?)?"
_ZONE = r"(Z|[+-]\d{2}:\d{2})"


def times_of(
    column: pa.Array, path: str, first_row: int = 1, dates: bool | None = None
) -> tuple[np.ndarray, bool]:
    """Returns (times int64, whether they are dates, in milliseconds) of a column.

    Args:
      path: of the file, for messages.
      first_row: the number of the column's first row.
      dates: whether the rows before were dates; None where there were none.

    Raises:
      UserError: a value is neither a whole number nor a date, or both occur; names the row.
    """
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        if not column.null_count:
            # A date has no cast to milliseconds but through a timestamp.
            whole = column.cast(pa.timestamp("ms", getattr(kind, "tz", None)), safe=False)
            return whole.cast(pa.int64()).to_numpy(), True
        texts = [(value and str(value)) or "" for value in column.to_pylist()]
        return _parsed(texts, path, first_row, dates)
    numbers = _whole_numbers(column)
    if numbers is not None and not dates:
        return numbers, False
    where = f"column time of {path}"
    codes, distinct = id_columns.coded_texts(column, where, first_row)
    if dates is not False:
        numbers = _plain_dates(distinct)
        if numbers is not None:
            return numbers[codes], True
    return _parsed(distinct.take(pa.array(codes)).to_pylist(), path, first_row, dates)


def _within(numbers: np.ndarray) -> bool:
    return not len(numbers) or bool(
        numbers.min() > -_LARGEST_TIME and numbers.max() < _LARGEST_TIME
    )


def _whole_numbers(column: pa.Array) -> np.ndarray | None:
    """Returns int64 of whole numbers in 63 bits, or of their text; None where there are others."""
    kind = column.type
    if column.null_count:
        return None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        if not (pc.all(pc.match_substring_regex(column, r"^-?[0-9]{1,18}$")).as_py() is not False):
            return None
        return column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    if pa.types.is_integer(kind):
        values = column.to_numpy(zero_copy_only=False)
        return values.astype(np.int64) if _within(values) else None
    if pa.types.is_floating(kind) and kind != pa.float16():
        values = column.to_numpy(zero_copy_only=False)
        if np.all(np.abs(values) <= _LARGEST_FLOAT) and np.all(values == np.rint(values)):
            return values.astype(np.int64)
    return None


def _plain_dates(texts: pa.LargeStringArray) -> np.ndarray | None:
    """Returns the milliseconds of dates in one of two plain forms, int64; None of others."""
    if not len(texts):
        return None
    for form, kind in ((_PLAIN_ISO + "$", None), (_PLAIN_ISO + _ZONE + "$", "UTC")):
        if pc.all(pc.match_substring_regex(texts, form)).as_py():
            try:
                parsed = texts.cast(pa.timestamp("us", kind)).cast(pa.int64())
            except pa.ArrowInvalid:  # the thirteenth month
                return None
            return parsed.to_numpy(zero_copy_only=False) // 1000
    return None


def _parsed(
    texts: list[str], path: str, first_row: int, dates: bool | None
) -> tuple[np.ndarray, bool]:
    numbers = np.zeros(len(texts), np.int64)
    if dates is None:
        dates = bool(texts) and times.from_iso(texts[0]) is not None
    for row, text in enumerate(texts):
        try:
            # int() takes 2_000 and spaces too
            time = times.from_iso(text) if dates else int(text) if _TIME.fullmatch(text) else None
            if time is None or abs(time) >= _LARGEST_TIME:
                raise ValueError(text)
            numbers[row] = time
        except ValueError:
            wanted = "ISO 8601 dates, as the first row is," if dates else "whole numbers of 63 bits"
            raise UserError(
                f"expected {wanted} as time of {path}, found {text[:40]!r} in row "
                f"{first_row + row}; write times as integers, or all as dates such as "
                "2024-11-03T14:30:00Z"
            ) from None
    return numbers, dates
