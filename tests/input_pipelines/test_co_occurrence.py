"""Checks on a log of five searches which items and words its training searches hold."""

import numpy as np

from input_pipelines.co_occurrence import of_searches
from input_pipelines.log import RawEvents, build_log
from input_pipelines.splits import split_log


def test_items_and_words_of_training_searches():
    log = build_log(
        "tiny",
        RawEvents(
            click_user=["a"] * 4,
            click_item=["i1", "i2", "i3", "i4"],
            click_time=[10, 20, 30, 40],
            search_user=["a"] * 5,
            search_time=[5, 15, 16, 25, 35],
            search_words=[["red", "red"], ["shoe", "blue"], [], ["shoe"], ["hat"]],
            search_clicks=[["i1"], ["i2", "i1"], ["i1"], [], ["i1"]],
        ),
    )
    # Left out: a search without words, one without clicks, and the one at 35, which is after the
    # click at 30 that is kept for validation.
    items, words = of_searches(log, split_log(log, "leave_one_out"))
    names = [
        [[ids[column] for column in row.nonzero()[0]] for row in table.toarray()]
        for ids, table in ((log.item_ids, items), (np.array(log.words), words))
    ]
    assert [sorted(row) for row in names[0]] == [["i1"], ["i1", "i2"]]
    assert [sorted(row) for row in names[1]] == [["red"], ["blue", "shoe"]]
    assert items.shape == (2, 5) and words.shape == (2, 5)
    assert items.data.tolist() == [1.0] * 3 and words.data.tolist() == [1.0] * 3
