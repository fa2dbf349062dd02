"""Finds interactions that a log holds twice: as a click, and in the search it came from.

Sources whose purchases or click-outs answer searches give both faces (`amazon_beauty`, `trivago`,
and `csv_log` where clicks name their search). The two are one where user and item are the same and
the click's time is that of the search, or lies between when it was asked and its time, at which it
is history. Whatever reads a history as text, or counts interactions, takes the two for one.
"""

from __future__ import annotations

import numpy as np

from input_pipelines.log import Log
from input_pipelines.search_task import SearchExamples


def repeated_clicks(log: Log, most: int) -> np.ndarray:
    """Tells which clicks some search of the same user and time holds too, bool [R].

    Args:
      most: clicked items of a search that count, the first.
    """
    searches = np.repeat(np.arange(len(log.search_times)), np.diff(log.click_offsets))
    first = np.arange(len(searches)) - np.asarray(log.click_offsets)[searches] < most
    searches, items = searches[first], np.asarray(log.click_items)[first]
    of_clicks, begins, ends = _moments(log, searches, items)
    if not len(ends):
        return np.zeros(len(of_clicks), bool)
    order = np.argsort(ends, kind="stable")
    # The earliest beginning among the searches that end no earlier. Those of another user or item
    # begin after all moments of this one.
    earliest = np.minimum.accumulate(begins[order][::-1])[::-1]
    place = np.searchsorted(ends[order], of_clicks, side="left")
    inside = place < len(order)
    return inside & (earliest[np.where(inside, place, 0)] <= of_clicks)


def also_clicked(log: Log, examples: SearchExamples) -> np.ndarray:
    """Tells which examples are clicks of the log too, bool [E]."""
    of_clicks, begins, ends = _moments(log, examples.target_row, examples.item)
    of_clicks.sort()
    return np.searchsorted(of_clicks, begins, "left") < np.searchsorted(of_clicks, ends, "right")


def _moments(
    log: Log, searches: np.ndarray, items: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers every (user, item, time) by one int64: of all clicks, and of the pairs' two ends.

    Args:
      searches, items: [N], rows of searches and an item of each.
    """
    click_users, search_users = (_users(o) for o in (log.rec_offsets, log.search_offsets))
    users = np.concatenate([click_users, search_users[searches]])
    pairs = users * np.int64(log.num_items + 1) + np.concatenate([log.rec_items, items])
    asked = log.search_times if log.search_begins is None else log.search_begins
    whens = [
        np.asarray(log.rec_times),
        *(np.asarray(each)[searches] for each in (asked, log.search_times)),
    ]
    known, ranks = np.unique(np.concatenate(whens), return_inverse=True)
    _, numbers = np.unique(pairs, return_inverse=True)
    count = len(click_users)
    of_clicks, begins, ends = np.split(ranks.astype(np.int64), [count, count + len(searches)])
    starts = numbers.astype(np.int64) * (len(known) + 1)
    return starts[:count] + of_clicks, starts[count:] + begins, starts[count:] + ends


def _users(offsets: np.ndarray) -> np.ndarray:
    """Returns the user of every row."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
