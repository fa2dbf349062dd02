"""Turns a source's cells into ids and texts by one rule for every reader.

    text            as it is: no space is stripped, no case changed; '007' is not '7'
    binary          decoded as UTF-8
    whole numbers   their digits; a whole float counts as its integer, up to 2^53
    null, NaN       no id: one line with the file and the row; of a text or a fact, absent

An empty id, one of more than 1,024 bytes or with a line break, half a surrogate pair, True, lists
and all else are refused in one line too. Texts, such as titles and queries, take U+FFFD for half a
surrogate pair. `id_columns` reads whole columns of Arrow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from core.errors import UserError

LONGEST_BYTES = 1024
LARGEST_FLOAT = 2.0**53
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_DIGITS = re.compile("-?[0-9]+")
_MOST_DIGITS = 18  # of 64 bits
_EXPECTED = "text, whole numbers or UTF-8 as ids"
_SHOWN = 40


def of_value(value: Any) -> str:
    """Returns the id of one value.

    Raises:
      ValueError: the value is no id; says what was found.
    """
    if isinstance(value, str):
        text = value
    elif isinstance(value, bytes | bytearray | memoryview):
        text = _decoded(bytes(value))
    elif isinstance(value, bool | np.bool_):
        raise ValueError(str(value))
    elif isinstance(value, int | np.integer):
        text = str(int(value))
    elif isinstance(value, float | np.floating):
        text = _whole(float(value))
    elif value is None:
        raise ValueError("null")
    else:
        raise ValueError(_shown(value))
    if not text:
        raise ValueError("an empty one")
    if _HALF_PAIR.search(text):
        raise ValueError(f"half a surrogate pair in {_shown(text)}")
    if "\n" in text or "\r" in text:  # files of ids have one a line
        raise ValueError(f"a line break in {_shown(text)}")
    if len(text) > LONGEST_BYTES // 4 and (size := len(text.encode())) > LONGEST_BYTES:
        raise ValueError(f"{size:,} bytes, {_shown(text)}; {LONGEST_BYTES:,} are the most")
    return text


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError(f"bytes that are no UTF-8, {_shown(value)}") from None


def _whole(value: float) -> str:
    if math.isnan(value):
        raise ValueError("NaN")
    if not value.is_integer() or abs(value) > LARGEST_FLOAT:
        raise ValueError(f"{value!r}, which is no whole number")
    return str(int(value))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def number_of(value: Any) -> int:
    """Returns the whole number of an id of digits, given as text or as a number.

    Raises:
      ValueError: the value is no whole number; says what was found.
    """
    digits = of_value(value)
    if not _DIGITS.fullmatch(digits) or len(digits) > _MOST_DIGITS:
        raise ValueError(_shown(value))
    return int(digits)


def of_values(values: Iterable[Any], where: str, rows: Sequence[int] | None = None) -> list[str]:
    """Returns the ids of a column's values.

    Args:
      where: for messages, such as 'column user of clicks.csv'.
      rows: the number of each value's row; None counts from 1.

    Raises:
      UserError: a value is no id; names its row.
    """
    return _each(values, of_value, _EXPECTED, where, rows)


def text_of(value: Any) -> str:
    """Returns a text's value: '' of null and NaN, numbers as they print, whole floats as integers.

    Raises:
      ValueError: True, a list or another value that is no text; says what was found.
    """
    if isinstance(value, str):
        return whole_text(value)
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return ""
    if isinstance(value, bytes | bytearray | memoryview):
        return _decoded(bytes(value))
    if isinstance(value, bool | np.bool_) or not isinstance(
        value, int | float | np.integer | np.floating
    ):
        raise ValueError(_shown(value))
    return str(int(value)) if float(value).is_integer() else str(value)


def texts_of(values: Iterable[Any], where: str, rows: Sequence[int] | None = None) -> list[str]:
    """Returns the texts of a column's values, '' where one is absent.

    Args:
      where, rows: as in `of_values`.

    Raises:
      UserError: a value is no text; names its row.
    """
    return _each(values, text_of, "text", where, rows)


def _each(
    values: Iterable[Any],
    read: Callable[[Any], str],
    expected: str,
    where: str,
    rows: Sequence[int] | None,
) -> list[str]:
    """Reads each value; a ValueError of `read` becomes one line that names the row."""
    texts = []
    for number, value in enumerate(values):
        try:
            texts.append(read(value))
        except ValueError as error:
            row = number + 1 if rows is None else rows[number]
            raise UserError(
                f"expected {expected} in {where}, found {error} in row {row}; mend the file"
            ) from None
    return texts


def whole_text(text: str) -> str:
    """Returns the text with U+FFFD for each half of a surrogate pair, which has no UTF-8."""
    return _HALF_PAIR.sub("\ufffd", text)
