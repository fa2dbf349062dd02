"""A click and a search of its user and time that clicked the same item are one interaction."""

import itertools

import numpy as np

from input_pipelines import repeated_interactions, search_task, splits
from input_pipelines.log import RawEvents, build_log


def toy():
    """u buys a after a search, then clicks b, looks for b later; v clicks at u's times."""
    return build_log(
        "toy",
        RawEvents(
            click_user=["u", "u", "u", "v", "v", "v", "v"],
            click_item=["a", "b", "c", "a", "b", "c", "a"],
            click_time=[1, 2, 4, 1, 3, 5, 6],
            search_user=["u", "u", "u", "v"],
            search_time=[1, 3, 4, 5],
            search_words=[["x"], ["y"], ["z"], []],
            search_clicks=[["a"], ["b"], ["b", "c"], ["c"]],
        ),
    )


def test_clicks_of_the_same_user_item_and_time_alone_are_repeated():
    log = toy()
    users = np.repeat(np.arange(log.num_users + 1), np.diff(log.rec_offsets))
    events = [
        (str(log.user_ids[user]), str(log.item_ids[item]), int(time))
        for user, item, time in zip(users, log.rec_items, log.rec_times, strict=True)
    ]
    told_twice = itertools.compress(events, repeated_interactions.repeated_clicks(log, 2))
    # b of u was looked for at another time; the clicks of v at 1 and 3 are of no search of v.
    assert set(told_twice) == {("u", "a", 1), ("u", "c", 4), ("v", "c", 5)}
    # With one item told of a search, c of u stands nowhere but in its click.
    told_twice = itertools.compress(events, repeated_interactions.repeated_clicks(log, 1))
    assert set(told_twice) == {("u", "a", 1), ("v", "c", 5)}


def test_examples_that_are_clicks_too():
    log = toy()
    parts = splits.split_log(log, "by_user")
    every = search_task.training_searches(log, parts)
    searched = zip(every.target_row.tolist(), every.item.tolist(), strict=True)
    names = [(row, str(log.item_ids[item])) for row, item in searched]
    assert names == [(0, "a"), (1, "b"), (2, "b"), (2, "c")]
    assert repeated_interactions.also_clicked(log, every).tolist() == [True, False, False, True]
