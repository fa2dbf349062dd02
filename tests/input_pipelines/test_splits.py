"""Splits and histories, by hand: strictly earlier, nothing else."""

import dataclasses

import numpy as np
import pytest

from core.errors import UserError
from input_pipelines import splits
from input_pipelines.log import RawEvents, build_log


def make_log(clicks, searches=()):
    """clicks: (user, item, time); searches: (user, time), each with a word of its own."""
    return build_log(
        "hand",
        RawEvents(
            click_user=[c[0] for c in clicks],
            click_item=[c[1] for c in clicks],
            click_time=[c[2] for c in clicks],
            search_user=[s[0] for s in searches],
            search_time=[s[1] for s in searches],
            search_words=[[f"{s[0]}{s[1]}"] for s in searches],
            search_clicks=[[] for _ in searches],
        ),
    )


@pytest.fixture
def log():
    # Rows: u1 0..3 (two at time 20), u2 4..5, u3 6..8. Search rows: u1 0..3, u2 4, u4 5.
    return make_log(
        [
            ("u1", "a", 10),
            ("u1", "b", 20),
            ("u1", "c", 20),
            ("u1", "d", 30),
            ("u2", "a", 10),
            ("u2", "b", 20),
            ("u3", "a", 10),
            ("u3", "b", 11),
            ("u3", "c", 12),
        ],
        [("u1", 5), ("u1", 20), ("u1", 30), ("u1", 40), ("u2", 15), ("u4", 1)],
    )


def test_histories_hold_what_is_strictly_earlier(log):
    rec_end, search_end = splits.history_ends(log, np.arange(9))
    # Both clicks at 20 see one click; the search at 20 is not in their history, nor 30's in 30's.
    assert rec_end.tolist() == [0, 1, 1, 3, 4, 5, 6, 7, 8]
    # u3 has no search: its range starts, and ends, at row 5.
    assert search_end.tolist() == [1, 1, 1, 2, 4, 5, 5, 5, 5]


def test_history_ends_of_some_rows_equal_those_of_all(log):
    rec_end, search_end = splits.history_ends(log, np.arange(9))
    rows = np.array([8, 3, 1])
    some = splits.history_ends(log, rows)
    assert some[0].tolist() == rec_end[rows].tolist()
    assert some[1].tolist() == search_end[rows].tolist()


def test_histories_agree_with_plain_loops():
    generator = np.random.default_rng(0)
    clicks = [
        (f"u{generator.integers(9)}", f"i{n}", int(generator.integers(12))) for n in range(200)
    ]
    events = {(f"u{generator.integers(12)}", int(generator.integers(12))) for _ in range(80)}
    log = make_log(clicks, sorted(events))
    rec_end, search_end = splits.history_ends(log, np.arange(len(log.rec_items)))
    row = 0
    for user in range(1, log.num_users + 1):
        mine = range(log.rec_offsets[user], log.rec_offsets[user + 1])
        theirs = range(log.search_offsets[user], log.search_offsets[user + 1])
        for row in mine:
            time = log.rec_times[row]
            earlier = sum(log.rec_times[r] < time for r in mine)
            searched = sum(log.search_times[s] < time for s in theirs)
            assert rec_end[row] == log.rec_offsets[user] + earlier
            assert search_end[row] == log.search_offsets[user] + searched
    assert row == len(log.rec_items) - 1


def test_times_too_far_apart_for_one_integer():
    far = 2**60
    log = make_log(
        [(f"u{i}", item, time) for i in range(9) for item, time in (("a", -far), ("b", far))],
        [("u3", 0), ("u3", far)],
    )
    rec_end, search_end = splits.history_ends(log, np.arange(18))
    assert (rec_end - log.rec_offsets[1 + np.arange(18) // 2]).tolist() == [0, 1] * 9
    assert search_end.tolist() == [0] * 7 + [1] + [2] * 10


def test_leave_one_out(log):
    parts = splits.split_log(log, "leave_one_out")
    assert parts.name == "leave_one_out"
    assert parts.test.target_row.tolist() == [3, 8] and parts.test.user.tolist() == [1, 3]
    assert parts.validation.target_row.tolist() == [2, 7]
    # u2 has two clicks: both train, the first has no history (its search is later). u3's first
    # has none either; u1's first follows a search.
    assert parts.train.target_row.tolist() == [0, 1, 5]
    assert parts.train.search_end.tolist() == [1, 1, 5]
    assert parts.test.rec_end.tolist() == [3, 8]
    splits.check_leakage(log, parts)


@pytest.mark.parametrize(("least", "rows"), [(0, [0, 1, 4, 5, 6]), (2, [1, 5]), (3, [])])
def test_training_targets_need_history(log, least, rows):
    parts = splits.split_log(log, "leave_one_out", min_history=least)
    assert parts.train.target_row.tolist() == rows
    assert len(parts.test) == 2


def test_global_time_cuts_at_quantiles_of_click_times():
    # Times 1..10: the .8 quantile is 8.2, the .9 quantile 9.1.
    log = make_log([(f"u{t % 3}", "a", t) for t in range(1, 11)], [("u9", 100)])
    parts = splits.split_log(log, "global_time", min_history=0)
    assert sorted(log.rec_times[parts.train.target_row].tolist()) == list(range(1, 9))
    assert log.rec_times[parts.validation.target_row].tolist() == [9]
    assert log.rec_times[parts.test.target_row].tolist() == [10]
    splits.check_leakage(log, parts)


def test_global_time_keeps_equal_times_on_one_side_of_a_cut():
    log = make_log([(f"u{n}", "a", 1 if n < 5 else 2) for n in range(10)])
    parts = splits.split_log(log, "global_time", min_history=0)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (5, 0, 5)


def test_validation_is_cut_by_seed():
    log = make_log([(f"u{n}", item, t) for n in range(50) for t, item in enumerate("abc")])
    chosen = [
        splits.split_log(log, "leave_one_out", seed=seed, max_validation=20) for seed in (0, 0, 1)
    ]
    first, again, other = (parts.validation.target_row.tolist() for parts in chosen)
    assert len(set(first)) == 20 and first == sorted(first)
    assert first == again != other
    # Those left out do not become training targets.
    assert not np.isin(chosen[0].train.target_row, np.arange(1, 150, 3)).any()
    assert len(chosen[0].test) == 50


def test_unknown_split():
    with pytest.raises(UserError, match="leave_one_out, global_time, by_user, published, found"):
        splits.split_log(make_log([("u", "a", 1)]), "random")


def leaking(parts, part, **changes):
    examples = dataclasses.replace(getattr(parts, part), **changes)
    return dataclasses.replace(parts, **{part: examples})


def test_planted_leaks_are_found(log):
    parts = splits.split_log(log, "leave_one_out")
    # The target itself, and a click at its very time.
    with pytest.raises(UserError, match="history of test to end before its target, found 2"):
        splits.check_leakage(log, leaking(parts, "test", rec_end=parts.test.rec_end + 1))
    with pytest.raises(UserError, match="history of validation to end before its target, found 1"):
        leak = leaking(parts, "validation", rec_end=parts.validation.rec_end + np.array([1, 0]))
        splits.check_leakage(log, leak)
    with pytest.raises(UserError, match="history of test to end before its target, found 1"):
        leak = leaking(parts, "test", search_end=parts.test.search_end + np.array([1, 0]))
        splits.check_leakage(log, leak)
    with pytest.raises(UserError, match="its own user's events, found 1"):
        # u3 has no search; the next row is u4's.
        leak = leaking(parts, "test", search_end=parts.test.search_end + np.array([0, 1]))
        splits.check_leakage(log, leak)
    with pytest.raises(UserError, match="no held-out target in training, found 2"):
        splits.check_leakage(log, dataclasses.replace(parts, train=parts.test))
