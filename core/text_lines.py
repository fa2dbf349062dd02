"""Reads lines of text files that people or other programs have written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO

from core.errors import UserError

_BOM = "\ufeff"
# Characters of a line. A file of megabytes can unpack to a line of gigabytes.
LONGEST_LINE = 16 * 2**20


def read_lines(path: str | os.PathLike[str], what: str, remedy: str) -> list[str]:
    """Reads the lines of a UTF-8 file without their ends.

    A line ends in a newline, or in a carriage return and a newline, alone: text may hold the other
    characters that `str.splitlines` cuts at, such as U+2028 and U+0085. A byte order mark at the
    start is dropped.

    Args:
      what: the file is, for messages: 'user ids'.
      remedy: what the user can do where it cannot be read.

    Raises:
      UserError: no such file, it is not UTF-8, or a line is longer than `LONGEST_LINE`.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            return list(lines_of(file))
    except OSError as error:
        reason = error.strerror or type(error).__name__
    except UnicodeDecodeError as error:
        reason = f"bytes that are not ({error.reason} at byte {error.start})"
    raise UserError(f"expected {what} as UTF-8 text in {path}, found {reason}; {remedy}")


def lines_of(file: IO[str]) -> Iterator[str]:
    """Yields the lines of a file opened with newline='\\n', as `read_lines` does.

    Raises:
      UserError: a line is longer than `LONGEST_LINE`; names it.
    """
    number = 0
    while line := file.readline(LONGEST_LINE + 2):
        number += 1
        line = line.removesuffix("\n").removesuffix("\r")
        if len(line) > LONGEST_LINE:
            raise UserError(
                f"expected lines of at most {LONGEST_LINE:,} characters in {file.name}, found a "
                f"longer one, line {number}; use the file as published"
            )
        yield line.removeprefix(_BOM) if number == 1 else line
