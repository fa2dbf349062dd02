"""Merges the two histories of an example into one list, for models that read it as text.

The kinds are those of GenSAR, Eq. 1: a recommended item that was clicked, a query, and an item that
was clicked after it.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from input_pipelines import segmenters
from input_pipelines.log import Log

CLICK, QUERY, SEARCHED = "click", "query", "searched"


class Event(NamedTuple):
    """Holds one event; `what` is an item's number, or the text of a query."""

    kind: str
    what: int | str


class Row(NamedTuple):
    """Names a row of a log: of its clicks where `is_click`, else of its searches."""

    is_click: bool
    number: int
    time: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class HistoryShape:
    """Says how many of the latest events a history has.

    Attributes:
      rec_length, search_length: clicks, and searches.
      clicks: items of a search.
    """

    rec_length: int
    search_length: int
    clicks: int


def query_text(log: Log, search: int) -> str:
    """Returns the words of a search as text; empty without words."""
    return segmenters.join(log.query(search))


def merged_rows(log: Log, clicks: np.ndarray, searches: np.ndarray) -> list[Row]:
    """Merges clicks and searches of one user by time; equal times: clicks first.

    Args:
      clicks, searches: int64 [R], [S], rows of the log, each kind in time order already.
    """
    times = np.concatenate([log.rec_times[clicks], log.search_times[searches]]).astype(np.int64)
    numbers = np.concatenate([clicks, searches]).tolist()
    # A stable order keeps clicks before searches of their time.
    order = np.argsort(times, kind="stable").tolist()
    return [Row(at < len(clicks), numbers[at], int(times[at])) for at in order]


def events_before(
    log: Log, user: int, rec_end: int, search_end: int, shape: HistoryShape
) -> list[Event]:
    """Returns the latest events before an example, oldest first; equal times: clicks first.

    Args:
      user, rec_end, search_end: of one of `splits.Examples`.
    """
    first_click = max(int(log.rec_offsets[user]), rec_end - shape.rec_length)
    first_search = max(int(log.search_offsets[user]), search_end - shape.search_length)
    clicks, searches = np.arange(first_click, rec_end), np.arange(first_search, search_end)
    events: list[Event] = []
    for is_click, row, _ in merged_rows(log, clicks, searches):
        if is_click:
            events.append(Event(CLICK, int(log.rec_items[row])))
            continue
        text = query_text(log, row)
        if text:
            events.append(Event(QUERY, text))
        first = int(log.click_offsets[row])
        last = min(int(log.click_offsets[row + 1]), first + shape.clicks)
        events += [Event(SEARCHED, int(item)) for item in log.click_items[first:last]]
    return events
