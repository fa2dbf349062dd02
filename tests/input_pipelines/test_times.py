"""Units of times, and ranges that cannot be of one log."""

import dataclasses

import numpy as np
import pytest

from core.errors import UserError
from input_pipelines import data_card, prepared_log, times
from input_pipelines.log import RawEvents, build_log
from input_pipelines.log_checks import validate_log

SECONDS = np.arange(1_700_000_000, 1_700_100_000, 100)


@pytest.mark.parametrize(
    ("factor", "unit"),
    [(1, "seconds"), (1000, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds")],
)
def test_dates_tell_their_unit(factor, unit):
    assert times.unit_of(SECONDS * factor, SECONDS[:0]) == unit
    assert times.shown(1_700_000_000 * factor, unit) == "2023-11-14 22:13:20"


def test_what_is_no_date_is_a_position():
    for some in (np.arange(9), np.zeros(0, np.int64), np.append(SECONDS, 0), -SECONDS):
        assert times.unit_of(some) == "positions"
    assert times.shown(17, "positions") == times.shown(17, "seconds") == "17"


@pytest.mark.parametrize(
    ("clicks", "searches"),
    [
        (SECONDS, SECONDS * 1000),
        (SECONDS * 1000, SECONDS),
        (SECONDS, np.arange(1, 9)),  # positions beside a clock
        (np.append(SECONDS, SECONDS * 1000), SECONDS),  # two units within one kind
        (np.append(SECONDS, SECONDS * 1000), SECONDS[:0]),
        (np.arange(0, 10**7, 1000), np.arange(0, 10**7, 1000) * 1000),  # since a start, no dates
    ],
)
def test_ranges_that_cannot_belong_together(clicks, searches):
    with pytest.raises(UserError, match="log x in one unit of time, found clicks at ") as error:
        times.check_ranges(clicks, searches, "log x")
    assert str(int(clicks.max())) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("clicks", "searches"),
    [
        (SECONDS, SECONDS),
        (SECONDS, SECONDS[:0]),
        (SECONDS, SECONDS[:1] - 50_000_000),  # one search, years before
        (np.arange(1, 1000), np.ones(9, np.int64)),  # positions: every search is the first event
        (np.arange(0, 10**7, 1000), np.arange(0, 10**6, 50)),
        (np.zeros(3, np.int64), np.zeros(3, np.int64)),
    ],
)
def test_ranges_that_may_belong_together(clicks, searches):
    times.check_ranges(clicks, searches, "log x")


def test_every_reader_refuses_them_and_the_card_shows_ranges_and_ties(tmp_path):
    events = RawEvents(
        click_user=["u", "u", "u", "v"],
        click_item=["a", "b", "a", "a"],
        click_time=[SECONDS[0], SECONDS[0], SECONDS[2], SECONDS[0]],
        search_user=["u", "u"],
        search_time=[SECONDS[1], SECONDS[3]],
        search_words=[["x"], []],
        search_clicks=[["b", "c"], []],
        time_unit="seconds",
    )
    log = build_log("toy", events)
    validate_log(log)
    prepared_log.save_log(log, str(tmp_path / "log"))
    card = data_card.describe(prepared_log.load_log(str(tmp_path / "log")))
    assert card["time_unit"] == "seconds"
    assert card["click_times"] == ["2023-11-14 22:13:20", "2023-11-14 22:16:40"]
    assert card["search_times"] == ["2023-11-14 22:15:00"] * 2
    assert (card["clicks_at_equal_times"], card["searches_at_equal_times"]) == (0.5, 0.0)
    assert card["searched_items_without_click"] == 0.5
    assert card["searches_left_out_as_empty"] == 1
    milliseconds = dataclasses.replace(events, search_time=[t * 1000 for t in events.search_time])
    with pytest.raises(UserError, match="searches at 1700000100000 to"):
        validate_log(build_log("toy", milliseconds))
    with pytest.raises(UserError, match=r"a time unit of seconds, .* found 'hours'"):
        validate_log(dataclasses.replace(log, time_unit="hours"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-01-02", 1_704_153_600_000),
        ("2024-01-02T03:04:05Z", 1_704_164_645_000),
        ("2024-01-02 03:04:05.678", 1_704_164_645_678),
        ("2024-01-02T03:04:05.678901+02:00", 1_704_157_445_678),
        ("1969-12-31T23:59:59.999Z", -1),
        ("2024-13-02", None),
        ("2024-02-30T00:00", None),
        ("20240102", None),
        ("12", None),
        ("2024-01-02T03:04:05Z ", None),
        ("", None),
    ],
)
def test_iso_dates_become_milliseconds(text, expected):
    assert times.from_iso(text) == expected
