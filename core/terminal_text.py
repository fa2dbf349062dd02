"""Makes text of data safe to print: what would steer a terminal is shown and not obeyed."""

from __future__ import annotations

import logging
import re
from typing import TextIO

# Control characters (C0 but for tab and line feed, DEL, C1), line and paragraph separators, marks
# and overrides of the writing direction, and halves of surrogate pairs, which cannot be encoded.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_LINE_ENDS = re.compile("[\n\t]")


def visible(text: str) -> str:
    r"""Returns `text` with every character that steers a terminal as \uXXXX, as JSON writes it.

    Line feeds and tabs stay.
    """
    return _STEERING.sub(_escaped, text)


def visible_line(text: str) -> str:
    """Returns `visible(text)` on one line: line feeds and tabs are shown as well."""
    return _LINE_ENDS.sub(_escaped, visible(text))


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


class VisibleFormatter(logging.Formatter):
    """Formats log records whose messages may hold text of data."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = visible_line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        return visible(super().formatException(ei))  # type: ignore[arg-type]


class VisibleStream:
    """Wraps a terminal's stream, and shows the steering characters of what is written to it."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(visible(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
