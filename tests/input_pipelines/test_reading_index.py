"""Tests that the arrays which reading a large log needs first are made once and saved beside it."""

import os

import numpy as np
import pytest
from test_csv_shards import events, write_csv

from core.errors import UserError
from input_pipelines import batches, candidates, prepare, reading_index, splits, windows


@pytest.fixture
def prepared(tmp_path):
    clicks, searches = events()
    write_csv(clicks[:300], tmp_path / "raw" / "clicks.csv")
    write_csv(searches[:100], tmp_path / "raw" / "searches.csv")
    folder = str(tmp_path / "log")
    return prepare.prepare_into("csv_log", str(tmp_path / "raw"), folder, {}), folder


@pytest.mark.parametrize("split", ["leave_one_out", "global_time", "by_user"])
def test_a_split_is_made_once(prepared, split, monkeypatch):
    log, folder = prepared
    expected = splits.split_log(log, split, max_validation=7)
    for _ in range(2):
        parts = reading_index.split_of(log, split, 7, folder, least=0)
        np.testing.assert_array_equal(parts.training_rows, expected.training_rows)
        for part in ("train", "validation", "test"):
            for field in ("user", "target_row", "rec_end", "search_end"):
                ours, theirs = (getattr(getattr(p, part), field) for p in (parts, expected))
                np.testing.assert_array_equal(ours, theirs)
                assert ours.dtype == theirs.dtype
        # The second time it is not computed.
        monkeypatch.setattr(reading_index, "split_log", None)
    assert os.listdir(folder).count(f"index-split-{split}-7-v1") == 1


def test_small_logs_leave_nothing(prepared):
    log, folder = prepared
    before = sorted(os.listdir(folder))
    reading_index.split_of(log, "leave_one_out", 5000, folder)
    reading_index.touched_of(log, folder)
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize("rows", [1, 40, 10**6])
def test_touched_items_in_parts(prepared, rows):
    log, _ = prepared
    firsts = {}
    for user in range(log.num_users + 1):
        told = [
            (int(log.rec_items[r]), int(log.rec_times[r]))
            for r in range(log.rec_offsets[user], log.rec_offsets[user + 1])
        ]
        for s in range(log.search_offsets[user], log.search_offsets[user + 1]):
            clicked = log.click_items[log.click_offsets[s] : log.click_offsets[s + 1]]
            told += [(int(item), int(log.search_times[s])) for item in clicked]
        for item, when in told:
            key = user * (log.num_items + 1) + item
            firsts[key] = min(firsts.get(key, when), when)
    arrays = candidates.touched_arrays(log, rows=rows)
    assert arrays["keys"].tolist() == sorted(firsts)
    assert arrays["times"].tolist() == [firsts[key] for key in sorted(firsts)]
    starts = [sum(k < u * (log.num_items + 1) for k in firsts) for u in range(log.num_users + 2)]
    assert arrays["user_starts"].tolist() == starts


def test_touched_items_are_kept_and_checked(prepared):
    log, folder = prepared
    expected = candidates.TouchedItems(log)
    for _ in range(2):
        touched = reading_index.touched_of(log, folder, least=0)
        for user in range(1, log.num_users + 1):
            np.testing.assert_array_equal(touched.of_user(user), expected.of_user(user))
    path = os.path.join(folder, "index-touched-v1", "times.npy")
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    with pytest.raises(UserError, match=r"times\.npy, found .*: its content has changed since"):
        reading_index.touched_of(log, folder, least=0)


def test_windows_are_packed_once(prepared, monkeypatch):
    log, folder = prepared
    parts = splits.split_log(log, "leave_one_out")
    shape = batches.BatchShape(rec_length=5, search_length=4, words=3, clicks=2, candidates=3)

    def made(keep):
        settings = {"batch_size": 8, "seed": 1, "negatives": 2, "targets_per_window": 4}
        return windows.WindowBatches(log, parts.train, shape, **settings, keep=keep)

    expected = made(None)
    for _ in range(2):
        again = made(reading_index.keeper(log, folder, least=0))
        assert again.described == expected.described
        for step in (0, 50):
            ours, theirs = again.batch_at(step), expected.batch_at(step)
            assert all((ours[name] == theirs[name]).all() for name in theirs)
        # The second time they are not packed.
        monkeypatch.setattr(windows, "pack", None)
    assert reading_index.keeper(log, folder) is None


def test_a_log_that_has_grown_has_its_own(prepared, tmp_path):
    log, folder = prepared
    reading_index.split_of(log, "leave_one_out", 7, folder, least=0)
    clicks, searches = events()
    write_csv(clicks[300:], tmp_path / "day" / "clicks.csv")
    write_csv(searches[100:], tmp_path / "day" / "searches.csv")
    made = prepare.append_into("csv_log", str(tmp_path / "day"), folder, {})
    parts = reading_index.split_of(made, "leave_one_out", 7, folder, least=0)
    expected = splits.split_log(made, "leave_one_out", max_validation=7)
    np.testing.assert_array_equal(parts.train.target_row, expected.train.target_row)


def test_histories_made_in_parts_are_those_made_at_once(prepared, monkeypatch):
    log, _ = prepared
    expected = splits.split_log(log, "leave_one_out", min_history=3)
    described = splits.describe(log, expected)
    monkeypatch.setattr(splits, "_PART", 7)
    parts = splits.split_log(log, "leave_one_out", min_history=3)
    splits.check_leakage(log, parts)
    assert len(parts.train) > 100 and splits.describe(log, parts) == described
    for field in ("user", "target_row", "rec_end", "search_end"):
        np.testing.assert_array_equal(getattr(parts.train, field), getattr(expected.train, field))
    times, users = np.asarray(log.rec_times), parts.train.user
    for user, row, end in zip(users, parts.train.target_row, parts.train.rec_end, strict=True):
        own = times[log.rec_offsets[user] : log.rec_offsets[user + 1]]
        assert end - log.rec_offsets[user] == (own < times[row]).sum()
    parts.train.rec_end[20] += 3
    with pytest.raises(UserError, match=r"train to end before its target, found 1 that do not"):
        splits.check_leakage(log, parts)
