"""Who is drawn as a negative, and how often: laws by hand, users who have touched nearly all."""

import itertools

import numpy as np
import pytest
import scipy.stats

from core.errors import UserError
from input_pipelines import batches, candidates, random_streams
from input_pipelines.log import RawEvents, build_log
from input_pipelines.splits import split_log


def log_of(clicks, items, **searches):
    """A log of clicks (user, item, time) over a catalogue i1, i2, ... of so many items."""
    users, names, times = zip(*clicks, strict=True)
    names = [f"i{name}" for name in names]
    empty = {"search_user": [], "search_time": [], "search_words": [], "search_clicks": []}
    return build_log(
        "busy",
        RawEvents(
            click_user=list(users),
            click_item=names,
            click_time=list(times),
            items=[f"i{i}" for i in range(1, items + 1)],
            item_texts={f"i{i}": f"red pot {i}" for i in range(1, items + 1)},
            **(empty | searches),
        ),
    )


def numbers(log):
    """From an item's name to its number."""
    return {str(name): number for number, name in enumerate(log.item_ids)}


def drawn(log, pool, draws, count):
    """`count` negatives of the user who clicked item i1 alone, under so many keys."""
    ones = np.ones(draws, np.int64)
    return candidates.draw_negatives(
        candidates.TouchedItems(log),
        log.num_items,
        user=ones,
        time=ones * 10,
        target=ones * numbers(log)["i1"],
        count=count,
        key=random_streams.keys(3, np.arange(draws)),
        pool=pool,
    )


@pytest.mark.parametrize("clicks_of_touched", [0, 3_000, 30_000])
def test_draws_have_the_law_of_successive_sampling(clicks_of_touched):
    """Also where nearly every draw with replacement is refused, so that the exact draw goes on."""
    log = log_of([("u", 1, 10)], 5)
    place = numbers(log)
    weights = {place["i2"]: 1, place["i3"]: 2, place["i4"]: 3, place["i5"]: 10}
    pool = np.repeat([*weights, place["i1"]], [*weights.values(), clicks_of_touched])
    draws = drawn(log, pool, 20_000, 2)
    total = sum(weights.values())
    pairs = list(itertools.permutations(weights, 2))
    expected = [
        weights[first] / total * weights[second] / (total - weights[first])
        for first, second in pairs
    ]
    observed = [int(np.sum((draws == pair).all(1))) for pair in pairs]
    assert sum(observed) == len(draws)
    assert scipy.stats.chisquare(observed, np.array(expected) * len(draws)).pvalue > 1e-3


def test_uniform_draws_go_on_exactly_where_few_items_are_left():
    # 400 of 405 items are touched: 2 of the 4 others, every pair equally often.
    log = log_of([("u", item, 10) for item in range(1, 402)], 405)
    place = numbers(log)
    draws = drawn(log, None, 6_000, 2)
    left = [place[f"i{i}"] for i in range(402, 406)]
    observed = [np.sum((draws == pair).all(1)) for pair in itertools.permutations(left, 2)]
    assert sum(observed) == len(draws)
    assert scipy.stats.chisquare(observed).pvalue > 1e-3


def test_an_exact_draw_depends_on_its_own_key_alone():
    log = log_of([("u", item, 10) for item in range(1, 402)], 405)
    whole = drawn(log, None, 50, 3)
    np.testing.assert_array_equal(drawn(log, None, 20, 3), whole[:20])
    assert len({tuple(row) for row in whole.tolist()}) > 10


def test_five_items_with_nearly_all_clicks_and_a_user_who_touched_nearly_all(tmp_path):
    heads = [(f"h{u}", 1 + (u + t) % 5, t) for u in range(400) for t in range(5)]
    tail = [("busy", item, item) for item in range(6, 2_906)]
    few = [("few", item, item) for item in (2_906, 2_907, 2_908)]
    log = log_of(heads + tail + few, 3_000)
    splits = split_log(log, "leave_one_out")
    for protocol in ("neg99", "neg99pop"):
        lists = candidates.evaluation_candidates(log, splits, "test", protocol, 0, str(tmp_path))
        names = log.user_ids[splits.test.user].tolist()
        busy, other = lists[names.index("busy")], lists[names.index("few")]
        assert len(set(other.tolist())) == 100 and other.min() > 0
        clicked = {str(name) for name in log.item_ids[busy[1:]]}
        if protocol == "neg99":  # 100 items are not the user's own, and 99 of these are drawn
            assert len(clicked) == 99 and not clicked & {f"i{i}" for i in range(6, 2_906)}
        else:  # but only 5 + 1 of them train
            assert clicked == {""} and busy[0] > 0
            assert not candidates.ranked(lists)[names.index("busy")]
            assert candidates.ranked(lists)[names.index("few")]


def test_the_pool_holds_every_click_that_trains_first_ones_too(tmp_path):
    # 120 users of exactly 3 clicks: the first trains, and is no training target.
    clicks = [(f"u{u}", 3 * u + t + 1, t) for u in range(120) for t in range(3)]
    log = log_of(clicks, 400)
    splits = split_log(log, "leave_one_out")
    assert len(splits.train) == 0
    lists = candidates.evaluation_candidates(log, splits, "test", "neg99pop", 0, str(tmp_path))
    first = {numbers(log)[f"i{3 * u + 1}"] for u in range(120)}
    assert set(lists[:, 1:].ravel().tolist()) == first
    # Under global_time it is every click before the cut.
    splits = split_log(log, "global_time")
    times = np.asarray(log.rec_times)
    trained = np.asarray(log.rec_items)[times < np.quantile(times, 0.8)]
    lists = candidates.evaluation_candidates(log, splits, "test", "neg99pop", 0, str(tmp_path))
    assert set(lists[:, 1:].ravel().tolist()) == set(trained.tolist())


def untouched_by_hand(log, user, time, target):
    rows = range(log.rec_offsets[user], log.rec_offsets[user + 1])
    own = {int(log.rec_items[row]) for row in rows if log.rec_times[row] <= time}
    return log.num_items - len(own | {target})


def test_items_left_to_an_example_are_counted():
    rng = np.random.default_rng(0)
    log = log_of(
        [(f"u{u}", int(rng.integers(1, 12)), int(rng.integers(0, 9))) for u in [*range(6)] * 9], 14
    )
    splits = split_log(log, "leave_one_out")
    touched = candidates.TouchedItems(log)
    for examples in (splits.train, splits.test):
        time = np.asarray(log.rec_times)[examples.target_row]
        target = np.asarray(log.rec_items)[examples.target_row]
        counts = touched.untouched(log.num_items, examples.user, time, target)
        rows = zip(examples.user, time, target, strict=True)
        assert counts.tolist() == [untouched_by_hand(log, *map(int, row)) for row in rows]
        counts = touched.untouched(log.num_items, examples.user, time - 100, target)
        assert counts.tolist() == [13] * len(examples)


SHAPE = batches.BatchShape(rec_length=3, search_length=2, words=2, clicks=2, candidates=5)


def training(log, negatives, searches=None):
    return batches.TrainBatches(
        log,
        split_log(log, "leave_one_out").train,
        SHAPE,
        batch_size=8,
        seed=0,
        negatives=negatives,
        searches=searches,
    )


def test_a_busy_user_is_named_and_the_others_train():
    # Of the 47 training targets of busy the last two have 3 and 2 items left.
    busy = [("busy", item, item) for item in range(1, 51)]
    others = [(f"u{u}", 1 + (7 * u + t) % 50, t) for u in range(60) for t in range(6)]
    source = training(log_of(busy + others, 50), 4)
    assert (
        "2 of 227 training examples are left out: user 'busy' touched all but fewer than 4"
        in (source.remarks[0])
    )
    for step in range(80):
        batch = source.batch_at(step)
        assert batch["candidates"].shape == (8, 5) and batch["candidates"].min() > 0
        assert all(len(set(row)) == 5 for row in batch["candidates"].tolist())


def test_a_small_catalogue_gives_fewer_negatives():
    log = log_of([(f"u{u}", 1 + (u + t) % 9, t) for u in range(20) for t in range(6)], 9)
    source = training(log, 99)
    # 3 targets a user with 2, 3 and 4 items touched up to them, so 7, 6 and 5 of 9 left.
    assert "training draws 5 negatives a target instead of 99" in source.remarks[0]
    assert source.batch_at(0)["candidates"].shape == (8, 6)


def test_a_catalogue_that_everybody_has_touched_is_one_line():
    log = log_of([(f"u{u}", 1 + t % 2, t) for u in range(20) for t in range(6)], 2)
    with pytest.raises(UserError, match="found none for 100% of the training examples"):
        training(log, 4)
