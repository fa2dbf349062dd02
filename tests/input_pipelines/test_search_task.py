"""Search examples by hand: what trains, its history, and batches that hold both tasks."""

import itertools

import numpy as np
import pytest

from core.errors import UserError
from input_pipelines import batches
from input_pipelines.candidates import TouchedItems
from input_pipelines.log import RawEvents, build_log
from input_pipelines.search_task import training_searches
from input_pipelines.splits import split_log

SHAPE = batches.BatchShape(rec_length=3, search_length=2, words=2, clicks=1, candidates=3)


def tiny_log(items=30):
    """User a clicks at 10..50 (40 validates, 50 tests) and searches around; b clicks once."""
    return build_log(
        "tiny",
        RawEvents(
            click_user=["a"] * 5 + ["b"],
            click_item=["i1", "i2", "i3", "i4", "i5", "i6"],
            click_time=[10, 20, 30, 40, 50, 10],
            search_user=["a"] * 6 + ["b"],
            search_time=[5, 20, 25, 35, 40, 45, 99],
            search_words=[["w1", "w2", "w3"], ["w2"], [], ["w3"], ["w4"], ["w5"], ["w6"]],
            search_clicks=[["i7", "i8"], ["i2"], ["i7"], [], ["i4"], ["i5"], ["i9"]],
            items=[f"x{i}" for i in range(items)],
        ),
    )


def test_training_searches_by_hand():
    log = tiny_log()
    searches = training_searches(log, split_log(log, "leave_one_out"))
    users, names = np.array(log.user_ids), np.array(log.item_ids)
    # Without words (25), without clicks (35), at or after a's held-out click (40, 45): none.
    # User b has no held-out click.
    assert users[searches.user].tolist() == ["a", "a", "a", "b"]
    assert names[searches.item].tolist() == ["i7", "i8", "i2", "i9"]
    assert np.asarray(log.search_times)[searches.target_row].tolist() == [5, 5, 20, 99]
    # Strictly earlier: the search at 20 sees the click at 10, not the one at 20, and one search.
    starts = log.rec_offsets[searches.user], log.search_offsets[searches.user]
    assert (searches.rec_end - starts[0]).tolist() == [0, 0, 1, 1]
    assert (searches.search_end - starts[1]).tolist() == [0, 0, 1, 0]


def test_under_global_time_one_cut_holds_for_everyone():
    log = tiny_log()
    # Clicks at 10, 10, 20, 30, 40, 50: the .8 quantile is 40, so b's search at 99 is too late.
    searches = training_searches(log, split_log(log, "global_time"))
    assert np.asarray(log.search_times)[searches.target_row].tolist() == [5, 5, 20]


def both_tasks(log, **changes):
    splits = split_log(log, "leave_one_out")
    settings = {"batch_size": 4, "seed": 0, "negatives": 2} | changes
    searches = training_searches(log, splits)
    return batches.TrainBatches(log, splits.train, SHAPE, searches=searches, **settings), searches


def test_a_batch_ends_in_search_examples():
    log = tiny_log()
    source, searches = both_tasks(log)
    touched = TouchedItems(log)
    seen = []
    # 3 training clicks with a history (i1, i2, i3): one step an epoch, so 4 searches a step.
    assert source.steps_per_epoch == 1
    for step, batch in enumerate(itertools.islice(source.stream(0), 3)):
        assert batch["user"].shape == (8,) and batch["query"].shape == (4, 2)
        np.testing.assert_array_equal(batch["query"], source.batch_at(step)["query"])
        for row in range(4):
            example = int(
                np.flatnonzero(
                    (searches.item == batch["candidates"][4 + row, 0])
                    & (searches.user == batch["user"][4 + row])
                )[0]
            )
            search = searches.target_row[example]
            words = log.word_ids[log.word_offsets[search] : log.word_offsets[search + 1]][:2]
            assert [w for w in batch["query"][row].tolist() if w] == words.tolist()
            history = log.rec_items[log.rec_offsets[searches.user[example]] :]
            length = searches.rec_end[example] - log.rec_offsets[searches.user[example]]
            assert batch["rec_items"][4 + row].tolist()[:length] == history[:length].tolist()
            negatives = batch["candidates"][4 + row, 1:]
            time = np.full(2, log.search_times[search])
            assert not touched.before(np.full(2, searches.user[example]), negatives, time).any()
            seen.append(example)
    # Each epoch has each search once.
    assert [sorted(seen[i : i + 4]) for i in (0, 4, 8)] == [[0, 1, 2, 3]] * 3


def test_the_recommendation_rows_are_those_of_a_batch_without_searches():
    log = tiny_log()
    source, _ = both_tasks(log)
    splits = split_log(log, "leave_one_out")
    alone = batches.TrainBatches(log, splits.train, SHAPE, batch_size=4, seed=0, negatives=2)
    for name, value in alone.batch_at(3).items():
        np.testing.assert_array_equal(source.batch_at(3)[name][:4], value, err_msg=name)


def test_searches_alone_make_batches_whose_every_row_has_a_query():
    log = tiny_log()
    searches = training_searches(log, split_log(log, "leave_one_out"))
    source = batches.TrainBatches(log, searches, SHAPE, batch_size=2, seed=0, negatives=2)
    assert source.steps_per_epoch == 2
    words, items, seen = np.array(log.words), np.array(log.item_ids), []
    for batch in itertools.islice(source.stream(0), 4):
        assert batch["query"].shape == (2, 2) and batch["user"].shape == (2,)
        targets = items[batch["candidates"][:, 0]]
        seen += zip(targets.tolist(), words[batch["query"][:, 0]].tolist(), strict=True)
    expected = [("i2", "w2"), ("i7", "w1"), ("i8", "w1"), ("i9", "w6")]
    assert sorted(seen[:4]) == sorted(seen[4:]) == expected


def test_hosts_share_the_search_examples():
    log = tiny_log()
    whole, _ = both_tasks(log)
    halves = [both_tasks(log, process_index=i, process_count=2)[0] for i in range(2)]
    parts = [half.batch_at(1) for half in halves]
    expected = whole.batch_at(1)
    np.testing.assert_array_equal(np.concatenate([p["query"] for p in parts]), expected["query"])
    searched = [p["candidates"][2:] for p in parts]
    np.testing.assert_array_equal(np.concatenate(searched), expected["candidates"][4:])


def test_the_validator_checks_the_query():
    log = tiny_log()
    source, _ = both_tasks(log)
    batch = source.batch_at(0)
    shape = batches.BatchShape(
        rec_length=3, search_length=2, words=2, clicks=1, candidates=3, search_rows=4
    )
    batches.validate_batch(batch, shape, 8, log)
    with pytest.raises(UserError, match="query from 0 to 6, found 9"):
        batches.validate_batch(batch | {"query": np.full((4, 2), 9, np.int32)}, shape, 8, log)
    with pytest.raises(UserError, match="difference in query"):
        batches.validate_batch(batch, SHAPE, 8, log)


def test_search_examples_are_shuffled_anew_each_epoch():
    source, _ = both_tasks(tiny_log())
    orders = {tuple(source.batch_at(step)["candidates"][4:, 0]) for step in range(20)}
    assert len(orders) > 5
