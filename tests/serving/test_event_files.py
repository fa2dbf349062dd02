"""Questions of a file are answered line by line; a line fails alone."""

import io
import json

import pytest

from core import text_lines
from core.errors import UserError
from serving import event_files
from serving.requests import Answer, Recommended


class Echo:
    """Answers with the user's name as the item, and refuses users named 'bad'."""

    time_unit = "milliseconds"

    def __init__(self):
        self.asked = []

    def recommend_many(self, requests):
        self.asked.append(len(requests))
        return [
            UserError("expected a good one")
            if request.user == "bad"
            else Answer(items=(Recommended(item=f"{request.user} {request.k}", title="", score=1),))
            for request in requests
        ]


def answered(content, k=7):
    lines = event_files.answer_lines(Echo(), io.BytesIO(content), k)
    return [json.loads(line) for line in lines]


def test_each_line_has_its_answer_or_its_error():
    rows = answered(
        b'\xef\xbb\xbf{"user": "a"}\n\n{"user": 3, "k": 2}\r\n{"k": 0}\nno json\n'
        b'{"user": "\xff"}\n{"user": "bad"}\n[1]\n{"user": "z"}'
    )
    assert [row["line"] for row in rows] == [1, 3, 4, 5, 6, 7, 8, 9]
    items = [row["items"][0]["item"] if "items" in row else None for row in rows]
    assert items == ["a 7", "3 2", None, None, None, None, None, "z 7"]
    errors = [row.get("error", "") for row in rows]
    assert "k as a whole number" in errors[2] and "JSON object in UTF-8" in errors[3]
    assert "JSON object in UTF-8" in errors[4] and errors[5] == "expected a good one"
    assert rows[5]["user"] == "bad" and "expected a JSON object" in errors[6]


def test_lines_are_answered_as_they_are_read():
    class Endless(io.RawIOBase):
        read_lines = 0

        def readline(self, size=-1):
            self.read_lines += 1
            return b'{"user": "a"}\n'

    source, model = Endless(), Echo()
    lines = event_files.answer_lines(model, source, 5)
    for _ in range(65):
        next(lines)
    assert source.read_lines == 128 and model.asked == [64, 64]


def test_a_line_that_is_too_long_fails_alone(monkeypatch):
    monkeypatch.setattr(event_files, "LONGEST_LINE", 30)
    rows = answered(b'{"user": "a"}\n{"user": "' + b"b" * 100 + b'"}\n{"user": "c"}\n')
    assert ["error" in row for row in rows] == [False, True, False]
    assert text_lines.LONGEST_LINE > 30


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        event_files.open_events(str(tmp_path / "none"))


def test_deep_nesting_fails_its_line():
    rows = answered(b"[" * 100_000 + b'\n{"user": "a"}\n')
    assert ["error" in row for row in rows] == [True, False]


def test_dates_are_times_of_the_log():
    model = Echo()
    lines = b'{"user": "a", "at": "2023-11-14T22:13:20Z"}\n{"user": "b", "at": "yesterday"}\n'
    rows = [json.loads(line) for line in event_files.answer_lines(model, io.BytesIO(lines), 7)]
    assert "items" in rows[0] and model.asked == [1]
    assert "of milliseconds since 1970, or as a date of ISO 8601, found" in rows[1]["error"]
