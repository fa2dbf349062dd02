"""Questions are read from plain JSON; what is malformed says so in one line."""

import json

import pytest

from core.errors import UserError
from serving.requests import (
    Answer,
    Because,
    Click,
    Limits,
    Moved,
    Recommended,
    Request,
    Search,
    parse,
)


def test_a_question_of_json_is_read():
    line = (
        '{"user": 7, "clicks": ["B0", {"item": "B1"}], "searches": ["red", '
        '{"query": "nail", "clicked": ["B2"]}], "query": "polish", "at": 1.7e9, "k": 5, '
        '"candidates": ["B3"], "exclude": ["B4"], "keep_seen": true, "because": true, '
        '"reasoning_steps": 0}'
    )
    assert parse(json.loads(line)) == Request(
        user="7",
        clicks=(Click("B0"), Click("B1")),
        searches=(Search("red"), Search("nail", ("B2",))),
        query="polish",
        at=1_700_000_000,
        k=5,
        candidates=("B3",),
        exclude=("B4",),
        keep_seen=True,
        because=True,
        reasoning_steps=0,
    )


def test_nothing_and_null_are_the_defaults():
    assert parse({}) == parse({"k": None, "user": None, "clicks": None}) == Request()


def test_python_writes_tuples():
    request = parse({"clicks": [("B0", 3)], "searches": [("nail", ["B2"], 4), ("red", [], 5)]})
    assert request.clicks == (Click("B0", 3),)
    assert request.searches == (Search("nail", ("B2",), 4), Search("red", (), 5))


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ([], "expected a JSON object, found []"),
        ({"clickz": []}, "found 'clickz'"),
        ({"k": 0}, "expected k as a whole number from 1, found 0"),
        ({"k": -1}, "found -1"),
        ({"k": True}, "found True"),
        ({"k": 1.5}, "found 1.5"),
        ({"k": "5"}, "found '5'"),
        ({"reasoning_steps": -1}, "expected reasoning_steps as a whole number from 0, found -1"),
        ({"at": float("nan")}, "expected the time of at as a whole number"),
        ({"at": float("inf")}, "found inf"),
        ({"at": 2**63}, "expected the time of at"),
        ({"clicks": [{"item": "B0", "time": float("nan")}]}, "the time of click 1"),
        ({"clicks": [{"item": "B0", "time": "now"}]}, "found 'now'"),
        ({"clicks": [["B0", 1, 2]]}, "expected click 1 as [item, time]"),
        ({"clicks": [{"time": 1}]}, "expected the key item in click 1"),
        ({"clicks": [{"item": "B0", "at": 1}]}, "found 'at'"),
        ({"clicks": "B0"}, "expected a list as clicks"),
        ({"clicks": ["B0", True]}, "expected an id as text in click 2, found True"),
        ({"clicks": [{"item": 1.5}]}, "in click 1"),
        ({"clicks": ["B0", ["B1", 3]]}, "found 1 of 2"),
        ({"searches": [3]}, "expected text as search 1, found 3"),
        ({"searches": [{"query": "red", "clicked": "B0"}]}, "clicked items of search 1"),
        ({"user": ["A"]}, "expected an id as text in user"),
        ({"query": "  "}, "expected words in query"),
        ({"query": 3}, "expected text as query"),
        ({"because": 1}, "expected true or false as because"),
        ({"candidates": "B0"}, "expected a list as candidates"),
        ({"clicks": ["B0"] * 100_000}, "expected at most 10,000 in clicks, found 100,000"),
        ({"clicks": ["B0"] * 6000, "searches": ["a"] * 6000}, "found 12,000"),
        ({"query": "a" * 10_001}, "expected at most 10,000 characters in query"),
    ],
)
def test_a_malformed_question_says_what_is_wrong(question, reason):
    with pytest.raises(UserError) as error:
        parse(question)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


def test_limits_are_the_callers():
    with pytest.raises(UserError, match="at most 2 in clicks"):
        parse({"clicks": ["a", "b", "c"]}, Limits(events=2))


def test_an_answer_is_plain_json():
    moved = Moved(kind="click", item="B0", given=0, score=0.5, rank=3)
    item = Recommended(
        item="B1", title="Nail", score=1.5, because=Because(moved=(moved,), rank_by_step=(4, 1))
    )
    answer = Answer(items=(item, Recommended(item="B2", title="", score=1.0, probability=0.7)))
    assert json.loads(json.dumps(answer.to_json())) == {
        "items": [
            {
                "item": "B1",
                "title": "Nail",
                "score": 1.5,
                "because": {
                    "moved": [
                        {
                            "kind": "click",
                            "item": "B0",
                            "clicked": [],
                            "given": 0,
                            "score": 0.5,
                            "rank": 3,
                        }
                    ],
                    "rank_by_step": [4, 1],
                },
            },
            {"item": "B2", "title": "", "score": 1.0, "probability": 0.7},
        ],
        "known_user": False,
        "skipped_items": 0,
        "skipped_words": 0,
        "skipped_events": 0,
    }


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("seconds", 1_700_000_000),
        ("milliseconds", 1_700_000_000_250),
        ("microseconds", 1_700_000_000_250_000),
        ("nanoseconds", 1_700_000_000_250_000_000),
    ],
)
def test_dates_come_into_the_unit_of_the_log(unit, expected):
    date = "2023-11-14T23:13:20.25+01:00"
    question = {"clicks": [["B0", date]], "searches": [["tea", [], date]], "at": date}
    request = parse(question, time_unit=unit)
    assert (request.clicks[0].time, request.searches[0].time, request.at) == (expected,) * 3
    assert parse({"at": 1_700_000_000}, time_unit=unit).at == 1_700_000_000


@pytest.mark.parametrize("date", ["NaN", "now", "2023-13-01", "2023-11-14T25:00:00", "1700000000"])
def test_texts_that_are_no_dates_are_refused(date):
    words = "the time of click 1 as a whole number of seconds since 1970, or as a date of ISO 8601"
    with pytest.raises(UserError, match=words):
        parse({"clicks": [["B0", date]]}, time_unit="seconds")


def test_dates_of_a_log_without_a_clock_are_refused():
    with pytest.raises(UserError, match="as a whole number in the unit of the training log"):
        parse({"at": "2023-11-14T22:13:20Z"})
