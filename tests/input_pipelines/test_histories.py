"""Histories of both kinds as one list, by hand."""

from input_pipelines.histories import CLICK, QUERY, SEARCHED, HistoryShape, events_before
from input_pipelines.log import RawEvents, build_log
from input_pipelines.segmenters import join

LOG = build_log(
    "tiny",
    RawEvents(
        click_user=["a", "a", "a", "b"],
        click_item=["i1", "i2", "i3", "i9"],
        click_time=[10, 20, 30, 5],
        search_user=["a", "a", "a"],
        search_time=[5, 20, 25],
        search_words=[["red", "pot"], [], ["tea"]],
        search_clicks=[["i4", "i5", "i6"], ["i2"], []],
    ),
)
ALL = HistoryShape(rec_length=5, search_length=5, clicks=2)


def number(name):
    return LOG.item_ids.tolist().index(name)


def of_a(rec, search, shape=ALL):
    """The events before user a's click number `rec` and search number `search`."""
    starts = int(LOG.rec_offsets[1]), int(LOG.search_offsets[1])
    return events_before(LOG, 1, starts[0] + rec, starts[1] + search, shape)


def test_events_in_order_of_time_clicks_first_where_times_are_equal():
    assert of_a(3, 3) == [
        (QUERY, "red pot"),
        (SEARCHED, number("i4")),
        (SEARCHED, number("i5")),  # two clicks of a search are kept
        (CLICK, number("i1")),
        (CLICK, number("i2")),
        (SEARCHED, number("i2")),  # a search without words is its clicks
        (QUERY, "tea"),  # and one without clicks its words
        (CLICK, number("i3")),
    ]
    assert of_a(1, 1)[-1] == (CLICK, number("i1")) and of_a(0, 0) == []


def test_only_the_latest_of_each_kind():
    shape = HistoryShape(rec_length=1, search_length=2, clicks=1)
    events = of_a(3, 3, shape)
    assert events == [(SEARCHED, number("i2")), (QUERY, "tea"), (CLICK, number("i3"))]
    blind = HistoryShape(rec_length=5, search_length=0, clicks=1)
    assert {kind for kind, _ in of_a(3, 3, blind)} == {CLICK}


def test_words_become_text_again():
    assert join(["red", "pot"]) == "red pot"
    assert join(["天", "气", "today", "好"]) == "天气 today 好"
    assert join([]) == ""
