"""An item's words, worked by hand."""

import numpy as np

from input_pipelines.item_words import item_words
from input_pipelines.log import RawEvents, build_log
from input_pipelines.splits import split_log


def test_most_frequent_words_of_training_searches():
    log = build_log(
        "tiny",
        RawEvents(
            click_user=["a"] * 4,
            click_item=["i1", "i2", "i3", "i4"],
            click_time=[10, 20, 30, 40],
            search_user=["a"] * 4,
            search_time=[5, 15, 25, 35],
            search_words=[["red", "shoe"], ["shoe", "blue"], ["shoe"], ["hat"]],
            search_clicks=[["i1"], ["i1", "i2"], ["i1"], ["i1"]],
        ),
    )
    # The search at 35 is after the click at 30, which is kept for validation.
    table = item_words(log, split_log(log, "leave_one_out"), 2)
    words, items = np.array(log.words), list(log.item_ids)
    assert table.shape == (5, 2) and table.dtype == np.int32
    # 'shoe' three times, then 'blue' and 'red' once each: the smaller id.
    second = words[min(list(words).index("red"), list(words).index("blue"))]
    assert words[table[items.index("i1")]].tolist() == ["shoe", second]
    assert sorted(words[table[items.index("i2")]].tolist()) == ["blue", "shoe"]
    assert not table[0].any() and not table[items.index("i3")].any()
