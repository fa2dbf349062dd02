"""Logs of coded names are those of `build_log`; names are coded as Python would."""

import itertools
import re
import sys

import numpy as np
import pyarrow as pa
import pytest

from core.errors import UserError
from input_pipelines import id_columns, times
from input_pipelines.coded_events import CodedEvents, build_coded_log
from input_pipelines.log import Ragged, RawEvents, build_log
from input_pipelines.name_coder import NameCoder
from input_pipelines.readers import time_columns


def coded(coder, names):
    codes, distinct = id_columns.coded(pa.array(names, pa.string()), "column x")
    coder.add(distinct, codes)
    return codes


def both(seed, span, clicks=3000, searches=500):
    """The same events as lists and as codes, in blocks, with times from 0 to `span`."""
    rng = np.random.default_rng(seed)
    users = [f"u{n}" for n in rng.integers(0, 90, clicks)]
    items = [f"ü{n}" for n in rng.integers(0, 50, clicks)]
    when = rng.integers(-span, span, clicks)
    search_users = [f"u{n}" for n in rng.integers(80, 120, searches)]
    asked = rng.integers(0, min(span, 9), searches)
    queries = [[f"w{w}" for w in rng.integers(0, 5, n % 3)] for n in range(20)]
    query = rng.integers(0, 20, searches).astype(np.int32)
    lengths = rng.integers(0, 3, searches)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    clicked = [f"ü{n}" for n in rng.integers(40, 60, ends[-1])]
    further = ["sofa", "ü1"]
    lists = RawEvents(
        click_user=users,
        click_item=items,
        click_time=when,
        search_user=search_users,
        search_time=asked,
        search_begins=asked - 1,
        search_words=[queries[q] for q in query],
        search_clicks=Ragged(ends, clicked),
        items=further,
        item_texts={"ü1": "one"},
        reading={"note": 1},
    )
    of_users, of_items = NameCoder(), NameCoder()
    cuts = [0, 10, 10, 2000, clicks]
    parts = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    events = CodedEvents(
        users=of_users,
        items=of_items,
        click_user=[coded(of_users, users[part]) for part in parts],
        click_item=[coded(of_items, items[part]) for part in parts],
        click_time=[when[part] for part in parts],
        search_user=coded(of_users, search_users),
        search_time=asked,
        search_begins=asked - 1,
        search_query=query,
        queries=queries,
        search_clicks=Ragged(ends, coded(of_items, clicked)),
        further_items=coded(of_items, further),
        item_texts={"ü1": "one"},
        time_unit=times.POSITIONS,
        reading={"note": 1},
    )
    of_users.merge()
    of_items.merge()
    return lists, events


@pytest.mark.parametrize(("seed", "span"), [(0, 3), (1, 10**6), (2, 2**61)])
def test_the_log_is_that_of_build_log(seed, span):
    lists, events = both(seed, span)
    expected = build_log("x", lists)
    log = build_coded_log("x", events)
    assert (log.hash, log.reading) == (expected.hash, expected.reading)
    assert log.item_texts() == expected.item_texts()
    assert (log.search_begins == expected.search_begins).all()
    assert events.click_user == [] and (len(log.rec_items) < 3000 or span > 3)


def test_without_clicks_there_is_no_log():
    _, events = both(0, 3)
    events.click_user, events.click_item, events.click_time = [], [], []
    with pytest.raises(UserError, match="expected clicks in the log of x, found none"):
        build_coded_log("x", events)


def test_codes_of_all_blocks_name_the_same(monkeypatch):
    monkeypatch.setattr("input_pipelines.name_coder._LEAST_WAITING", 50)
    rng, coder, blocks = np.random.default_rng(0), NameCoder(), []
    for size in (0, 3, 40, 100, 100, 7):
        names = [f"n{n}" for n in rng.integers(0, 150, size)]
        blocks.append((names, coded(coder, names)))
    coder.merge()
    for names, codes in blocks:
        assert coder.names.take(pa.array(codes)).to_pylist() == names
    used = np.zeros(len(coder.names), bool)
    used[blocks[2][1]] = True
    ordered, numbers = coder.ranked(used)
    assert ordered.to_pylist() == sorted(set(blocks[2][0]))
    assert [ordered[int(n) - 1].as_py() for n in numbers[blocks[2][1]]] == blocks[2][0]
    assert (numbers[~used] == 0).all()


def test_odd_names_are_those_of_python():
    texts = ["", "a", "-", "-x", "-1", "-٣", "x" * 1024, "x" * 1025, "é" * 513, "a b"]
    texts += [f"a{chr(c)}b" for c in range(sys.maxunicode) if chr(c).isspace() or c < 300]
    odd = [bool(re.search(r"^$|\s|^-\d", t)) or len(t.encode()) > 1024 for t in texts]
    assert id_columns.odd_names(pa.array(texts, pa.large_string())).tolist() == odd
    assert id_columns.odd_names(pa.array([], pa.large_string())).tolist() == []
    part = pa.array(["a b", "c", "d e"], pa.large_string())[1:2]
    assert id_columns.odd_names(part).tolist() == [False]


ISO = [
    "2024-01-02",
    "2024-01-02T03:04",
    "2024-01-02 03:04:05",
    "2024-01-02T03:04:05.5",
    "2024-01-02T03:04:05.123456789",
    "2024-01-02T03:04:05,25",
    "2024-01-02T03:04:05Z",
    "2024-01-02T03:04:05.999+02:00",
    "2024-01-02T03:04:05+0200",
    "1969-12-31T23:59:59.9995Z",
]


@pytest.mark.parametrize("text", ISO)
def test_dates_are_those_of_times(text):
    expected = ([times.from_iso(text)] * 2, True)
    column = pa.array([text, text])
    numbers, dates = time_columns.times_of(column, "x.csv")
    assert (numbers.tolist(), dates) == expected
    # Beside one of another form too.
    numbers, _ = time_columns.times_of(pa.array([text, "2024-05-06T07:08:09.5Z"]), "x.csv")
    assert numbers.tolist() == [expected[0][0], times.from_iso("2024-05-06T07:08:09.5Z")]


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pa.array(["0x10"]), "'0x10' in row 5"),
        (pa.array(["1", "+2"]), r"'\+2' in row 6"),
        (pa.array(["2024-01-02", "2024-13-02"]), "ISO 8601 dates, .*'2024-13-02' in row 6"),
        (pa.array(["2024-01-02T03:04:05", "2024-01-02T03:04:65"]), "'2024-01-02T03:04:65' in row"),
        (pa.array([2**62]), f"'{2**62}' in row 5"),
        (pa.array([2**63], pa.uint64()), f"'{2**63}' in row 5"),
        (pa.array([1.0, 0.5]), "'0.5' in row 6"),
        (pa.array([1, None]), "'' in row 6"),
    ],
)
def test_what_is_no_time_is_named_with_its_row(column, found):
    with pytest.raises(UserError, match=found) as error:
        time_columns.times_of(column, "x.csv", first_row=5)
    assert "\n" not in str(error.value)
