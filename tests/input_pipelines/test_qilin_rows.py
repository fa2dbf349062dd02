"""Qilin: the cells of its CSVs, and real rows of the authors' toy data."""

import ast
import csv
import itertools
import pathlib
import re
import time

import numpy as np
import pytest
from test_qilin import check_records, records_of

from core.errors import UserError
from input_pipelines import splits
from input_pipelines.log_checks import validate_log
from input_pipelines.prepared_log import load_log, save_log
from input_pipelines.readers import qilin, qilin_files

TOY = pathlib.Path(__file__).parents[3] / "shared" / "data" / "qilin_toy"
needs_toy = pytest.mark.skipif(
    not TOY.is_dir(), reason=f"needs the research data in {TOY.name}, absent"
)


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("[{'click': 1, 'note_idx': 2", "no printed list of dicts"),
        ("[{'click': 1}]", "no field 'note_idx'"),
        ("[{'click': 1, 'note_idx': exit()}]", "could not convert string to float: 'exit\\(\\)'"),
        ("__import__('os').getcwd()", "no printed list of dicts"),
        ("[{'click': {'note_idx': 2}}]", "no printed list of dicts"),
        ("", "no printed list of dicts"),
    ],
)
def test_cells_that_are_no_printed_lists(cell, found):
    with pytest.raises(UserError, match=found) as error:
        qilin_files.parse_cell(cell, ["click", "note_idx"], "row 1")
    assert "\n" not in str(error.value)


def test_a_printed_cell():
    cell = "[{'note_idx': 3, 'id': 'a, {b}', 'click': nan}\n {'click': 1.0, 'note_idx': 1394014}]"
    first, second = qilin_files.parse_cell(cell, ["click", "note_idx"], "row 1")
    assert first["note_idx"] == 3 and np.isnan(first["click"])
    assert second == {"click": 1.0, "note_idx": 1394014.0}
    assert qilin_files.parse_cell("[]", ["click"], "row 1") == []


@pytest.mark.parametrize(
    "cell",
    [
        "[{'click':" + " " * 20_000 + "'x' 'y'}]",
        "[{" + " " * 1_000_000 + "}]",
        "[" + "{\\'" * 200_000 + "]",
        "[{" + "a" * 1_000_000 + "]",
    ],
)
def test_made_up_cells_take_no_longer_than_others(cell):
    started = time.process_time()
    with pytest.raises(UserError, match=r"no printed|no field"):
        qilin_files.parse_cell(cell, ["click"], "row 1")
    assert time.process_time() - started < 2


def toy_rows(name):
    """The toy rows through Python's own parser of literals."""
    csv.field_size_limit(2**31 - 1)
    with open(TOY / f"{name}.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            cell = next(v for k, v in row.items() if k.endswith("details_with_idx"))
            cell = re.sub(r"\}\s+\{", "}, {", cell).replace(": nan", ": None")
            yield int(row["user_idx"]), row["query"], ast.literal_eval(cell)


@needs_toy
def test_real_rows_agree_with_plain_loops(tmp_path):
    clicks, searches, shown = set(), [], set()
    for part in ("train", "test"):
        for user, _, details in toy_rows(f"recommendation_{part}"):
            clicked = {}
            for one in details:
                shown.add(one["note_idx"])
                if one["click"] == 1:
                    time = min(one["request_timestamp"], clicked.get(one["note_idx"], 10**15))
                    clicked[one["note_idx"]] = time
            clicks |= {(user, note, time) for note, time in clicked.items()}
        for user, query, details in toy_rows(f"search_{part}"):
            shown |= {one["note_idx"] for one in details}
            chosen = sorted((d["position"], d["note_idx"]) for d in details if d["click"] == 1)
            notes = list(dict.fromkeys(note for _, note in chosen))
            stamps = [d["search_timestamp"] for d in details]
            stamps_of_clicks = [d["search_timestamp"] for d in details if d["click"] == 1]
            time = int(max(stamps_of_clicks) if stamps_of_clicks else min(stamps)) * 1000
            others = [d for d in details if d["search_timestamp"] * 1000 <= time]
            passed = sorted((d["position"], d["note_idx"]) for d in others)
            passed = [note for note in dict.fromkeys(n for _, n in passed) if note not in notes]
            searches.append((user, time, query, notes, passed))
    events = qilin.read_events(str(TOY))
    assert set(zip(events.click_user, events.click_item, events.click_time, strict=True)) == clicks
    assert len(events.click_user) == len(clicks) == 49
    columns = (events.search_user.tolist(), events.search_time.tolist(), events.search_query)
    parts = [
        [notes[a:b].tolist() for a, b in itertools.pairwise(ends)]
        for notes, ends in (
            (events.search_clicks, events.search_click_ends),
            (events.search_unclicked, events.search_unclicked_ends),
        )
    ]
    assert sorted(searches) == sorted(zip(*columns, *parts, strict=True))
    assert (
        len(searches) == 20
        and any(passed for *_, passed in searches)
        and set(events.shown_item.tolist()) == shown
    )

    log = qilin.read_qilin(str(TOY), segmenter="characters")
    validate_log(log)
    assert (log.num_users, log.num_items) == (33, 678)
    assert {"渔", "macbookair"} < set(log.words.tolist())
    # Both kinds of times are milliseconds of November 2024.
    for times in (log.rec_times, log.search_times):
        assert times.min() >= 1_730_419_200_000 and times.max() < 1_733_011_200_000
    save_log(log, str(tmp_path / "log"))
    assert load_log(str(tmp_path / "log")).hash == log.hash
    parts = splits.split_log(log, "leave_one_out")
    splits.check_leakage(log, parts)


@needs_toy
def test_real_profiles():
    users = np.array([2, 5, 7])
    profiles = qilin_files.read_profiles(str(TOY), users)
    assert profiles == {
        "2": {"gender": "female", "platform": "iOS", "age": "23-25"}
        | {"location": "Hong Kong Tsuen Wan"},
        "5": {"gender": "male", "platform": "iOS", "age": "36-40", "location": "中国 安徽 淮北"},
        "7": {"gender": "female", "platform": "iOS"},
    }


@needs_toy
def test_real_rows_as_records(tmp_path):
    records = records_of(TOY, tmp_path / "tfds")
    check_records(records, qilin.read_qilin(str(TOY)))
