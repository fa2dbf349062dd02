"""The history of an example as one list of events of both kinds, for models that read it as text.

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
    """`what` is an item's number, or the text of a query."""

    kind: str
    what: int | str


@dataclasses.dataclass(frozen=True, kw_only=True)
class HistoryShape:
    """How many of the latest events are kept.

    Attributes:
      rec_length, search_length: clicks, and searches.
      clicks: items of a search.
    """

    rec_length: int
    search_length: int
    clicks: int


def query_text(log: Log, search: int) -> str:
    """The words of a search as text; empty without words."""
    return segmenters.join(log.query(search))


def events_before(
    log: Log, user: int, rec_end: int, search_end: int, shape: HistoryShape
) -> list[Event]:
    """The latest events before an example, oldest first; equal times: clicks first.

    Args:
      user, rec_end, search_end: of one of `splits.Examples`.
    """
    first_click = max(int(log.rec_offsets[user]), rec_end - shape.rec_length)
    first_search = max(int(log.search_offsets[user]), search_end - shape.search_length)
    clicks = np.arange(first_click, rec_end)
    searches = np.arange(first_search, search_end)
    times = np.concatenate([log.rec_times[clicks], log.search_times[searches]])
    rows = np.concatenate([clicks, searches])
    # A stable order keeps clicks before searches of their time.
    events: list[Event] = []
    for place in np.argsort(times, kind="stable").tolist():
        row = int(rows[place])
        if place < len(clicks):
            events.append(Event(CLICK, int(log.rec_items[row])))
            continue
        text = query_text(log, row)
        if text:
            events.append(Event(QUERY, text))
        first = int(log.click_offsets[row])
        last = min(int(log.click_offsets[row + 1]), first + shape.clicks)
        events += [Event(SEARCHED, int(item)) for item in log.click_items[first:last]]
    return events
