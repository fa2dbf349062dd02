"""Answers the questions of a file, one JSON object a line (`requests.parse`), as it is read.

Each line of the output answers one line of the input: {"line": 1, "user": ..., "items": [...]}, as
`requests.Answer.to_json`, or {"line": 1, "error": ...} where the line cannot be answered. The
others are answered all the same.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import IO, Any

from core.errors import UserError
from core.text_lines import LONGEST_LINE
from serving.ranking import SIZES
from serving.requests import Answer, Answers, Request, parse

_BOM = b"\xef\xbb\xbf"


def open_events(path: str) -> IO[bytes]:
    """Opens a file of questions.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(
            f"expected questions as JSON lines in {path}, found {error.strerror or error}; correct "
            "--events"
        ) from None


def answer_lines(model: Answers, file: IO[bytes], k: int) -> Iterator[str]:
    """Yields a line of JSON for each line of a file that is not empty, in its order.

    Args:
      k: items of a question that does not say how many.
    """
    lines = _lines(file)
    while part := list(itertools.islice(lines, SIZES[-1])):
        asked = [(number, _read(line, k, model.time_unit)) for number, line in part]
        requests = [request for _, request in asked if isinstance(request, Request)]
        answers = iter(model.recommend_many(requests))
        for number, request in asked:
            answer = next(answers) if isinstance(request, Request) else request
            yield json.dumps(_row(number, request, answer), ensure_ascii=False) + "\n"


def _row(number: int, request: Request | UserError, answer: Answer | UserError) -> dict[str, Any]:
    row: dict[str, Any] = {"line": number}
    if isinstance(request, Request) and request.user is not None:
        row["user"] = request.user
    if isinstance(answer, UserError):
        return row | {"error": str(answer)}
    return row | answer.to_json()


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Yields the lines that are not empty with their numbers; None of one that is too long."""
    for number in itertools.count(1):
        line = file.readline(LONGEST_LINE + 1)
        if not line:
            return
        whole = len(line) <= LONGEST_LINE
        while not whole and line and not line.endswith(b"\n"):
            line = file.readline(LONGEST_LINE)
        if number == 1:
            line = line.removeprefix(_BOM)
        if not whole or line.strip():
            yield number, line if whole else None


def _read(line: bytes | None, k: int, time_unit: str) -> Request | UserError:
    try:
        if line is None:
            raise UserError(
                f"expected a line of at most {LONGEST_LINE:,} bytes, found a longer one; send less"
            )
        try:
            question = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"expected a JSON object in UTF-8, found {str(error)[:80] or 'another text'}; "
                "correct the line"
            ) from None
        if isinstance(question, dict) and question.get("k") is None:
            question["k"] = k
        return parse(question, time_unit=time_unit)
    except UserError as error:
        return error
