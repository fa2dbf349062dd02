"""A log is cut into windows of time that know nothing of what comes after them."""

import dataclasses

import numpy as np
import pytest

from core.errors import UserError
from input_pipelines.log import RawEvents, build_log
from input_pipelines.log_checks import validate_log
from input_pipelines.search_task import training_searches
from input_pipelines.splits import check_leakage, split_log
from input_pipelines.time_windows import cut_times, window_log

DAY = 86_400
FIRST = 1_700_000_000


def raw(end=40):
    """One click and one search a day: user d % 4 clicks item d // 2; item 99 is never touched."""
    days = np.arange(end)
    return RawEvents(
        click_user=[f"u{day % 4}" for day in days],
        click_item=[f"i{day // 2:02d}" for day in days],
        click_time=FIRST + DAY * days,
        search_user=[f"u{day % 4}" for day in days],
        search_time=FIRST + DAY * days + 60,
        search_words=[[f"w{day // 3:02d}"] for day in days],
        search_clicks=[[f"i{day // 2:02d}"] for day in days],
        items=["i99"],
        item_texts={f"i{item:02d}": f"text {item}" for item in [*range(20), 99]},
        time_unit="seconds",
    )


def test_windows_hold_equal_shares_of_the_later_half():
    log = build_log("made", raw())
    cuts = cut_times(log, 4)
    assert cuts == [FIRST + DAY * day for day in (20, 25, 30, 35)] + [FIRST + 39 * DAY + 1]


def test_a_window_is_the_log_of_its_end():
    log = build_log("made", raw())
    made = window_log(log, FIRST + 20 * DAY, FIRST + 25 * DAY)
    validate_log(made)
    # What a reader of the first 25 days would have made, but for the split.
    expected = build_log("made", raw(25))
    for name in ("user_ids", "item_ids", "words"):
        assert getattr(made, name).tolist() == getattr(expected, name).tolist()
    for name in ("rec_offsets", "rec_items", "rec_times", "search_offsets", "search_times"):
        np.testing.assert_array_equal(getattr(made, name), getattr(expected, name))
    for name in ("word_offsets", "word_ids", "click_offsets", "click_items"):
        np.testing.assert_array_equal(getattr(made, name), getattr(expected, name))
    assert made.item_texts() == expected.item_texts()
    parts = split_log(made, "published")
    check_leakage(made, parts)
    times = {p: np.asarray(made.rec_times)[getattr(parts, p).target_row] for p in ("train", "test")}
    assert times["train"].max() < FIRST + 18 * DAY
    assert sorted(times["test"]) == [FIRST + DAY * day for day in range(20, 25)]
    validation = np.asarray(made.rec_times)[parts.validation.target_row]
    assert sorted(validation) == [FIRST + DAY * day for day in (18, 19)]
    training = np.asarray(made.rec_times)[parts.training_rows]
    assert sorted(training) == [FIRST + DAY * day for day in range(18)]
    # The whole history of a target, also that of the days between.
    last = int(parts.test.target_row[-1])
    user = int(parts.test.user[-1])
    assert parts.test.rec_end[-1] == last and made.rec_offsets[user] < last


def test_what_cannot_be_cut_is_refused():
    events = raw()
    log = build_log("made", RawEvents(**{**vars(events), "time_unit": "positions"}))
    with pytest.raises(UserError, match=r"expected times of a clock in made .* found positions"):
        cut_times(log, 4)
    same = build_log("made", RawEvents(**{**vars(events), "click_time": np.full(40, FIRST)}))
    with pytest.raises(UserError, match="can fill 4 windows, found 1 times; lower --windows"):
        cut_times(same, 4)
    with pytest.raises(UserError, match="expected train clicks of made around the time"):
        window_log(build_log("made", events), FIRST, FIRST + DAY)


def test_no_search_from_the_windows_validation_on_trains():
    made, days = raw(), np.arange(20, 25)
    # One who searches on every day of the window, and whose clicks are all before it.
    with_quiet = dataclasses.replace(
        made,
        click_user=[*made.click_user, *["quiet"] * 3],
        click_item=[*made.click_item, "i00", "i01", "i02"],
        click_time=[*made.click_time, *(FIRST + DAY * np.arange(3) + 5)],
        search_user=[*made.search_user, *["quiet"] * 5],
        search_time=[*made.search_time, *(FIRST + DAY * days + 61)],
        search_words=[*made.search_words, *[["w00"]] * 5],
        search_clicks=[*made.search_clicks, *[["i03"]] * 5],
    )
    log = window_log(build_log("made", with_quiet), FIRST + DAY * 20, FIRST + DAY * 25)
    splits = split_log(log, "published")
    held_out = np.setdiff1d(np.arange(len(log.rec_items)), splits.training_rows)
    first = np.asarray(log.rec_times)[held_out].min()
    rows = training_searches(log, splits).target_row
    assert len(rows) and (np.asarray(log.search_times)[rows] < first).all()
