"""Reasons name the event that was left out and the rank that the item has without it."""

import numpy as np

from serving.because import events_read, ranks, without
from serving.histories import History, HistoryClick, HistorySearch

CLICKS = tuple(HistoryClick(item=item, time=item, given=item) for item in (1, 2, 3))
SEARCHES = tuple(
    HistorySearch(words=words, text=(), clicked=(), time=0, given=0) for words in ((5,), (), (6,))
)
HISTORY = History(user=0, clicks=CLICKS, searches=SEARCHES, touched=np.zeros(0, np.int32))


def test_a_model_reads_the_latest_events_that_say_something():
    assert events_read(HISTORY, 2, 5) == [CLICKS[1], CLICKS[2], SEARCHES[0], SEARCHES[2]]
    assert events_read(HISTORY, 0, 1) == [SEARCHES[2]]


def test_no_older_event_takes_the_place_of_one_left_out():
    less = without(HISTORY, [CLICKS[2]], 2, 1)
    assert less.clicks == (CLICKS[1],)
    assert less.searches == (SEARCHES[2],)


def test_of_two_equal_clicks_one_is_left_out():
    twice = (HistoryClick(item=1, time=1, given=0), HistoryClick(item=1, time=1, given=0))
    history = History(user=0, clicks=twice, searches=(), touched=np.zeros(0, np.int32))
    assert len(without(history, twice[:1], 5, 5).clicks) == 1


def test_ranks_are_among_the_allowed_and_ties_go_by_number():
    scores = np.array([[9.0, 1.0, 3.0, 3.0, 2.0], [9.0, 1.0, 0.0, 0.5, 2.0]], np.float32)
    allowed = np.array([False, True, True, True, False])
    np.testing.assert_array_equal(ranks(scores, allowed, np.array([3, 1])), [[2, 3], [2, 1]])
    assert ranks(scores, allowed, np.zeros(0, int)).shape == (2, 0)
