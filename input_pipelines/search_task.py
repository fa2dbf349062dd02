"""Examples of the search task: for a query, the item that was clicked is to be ranked first."""

from __future__ import annotations

import dataclasses

import numpy as np

from input_pipelines.log import Log
from input_pipelines.splits import Examples, Splits, search_history_ends


@dataclasses.dataclass(frozen=True)
class SearchExamples(Examples):
    """Targets (user, search, clicked item); `target_row` is the row of the search.

    Attributes:
      item: int32 [E], the clicked item.
    """

    item: np.ndarray


def training_searches(log: Log, splits: Splits) -> SearchExamples:
    """Every click of a training search that has words.

    A search trains if it happened before the first click that its user keeps for validation or
    test; under 'global_time' before the first such click of anyone.
    """
    held_out = np.setdiff1d(np.arange(len(log.rec_items)), splits.training_rows)
    times = np.asarray(log.rec_times)[held_out]
    until = np.full(log.num_users + 1, np.iinfo(np.int64).max)
    if splits.name == "global_time":
        until[:] = times.min(initial=until[0])
    else:
        users = np.repeat(np.arange(log.num_users + 1), np.diff(log.rec_offsets))[held_out]
        np.minimum.at(until, users, times)
    search_users = np.repeat(np.arange(log.num_users + 1), np.diff(log.search_offsets))
    trains = np.asarray(log.search_times) < until[search_users]
    trains &= np.diff(log.word_offsets) > 0
    searches = np.repeat(np.arange(len(log.search_times)), np.diff(log.click_offsets))
    clicks = np.flatnonzero(trains[searches])
    rows = searches[clicks]
    rec_end, search_end = search_history_ends(log, rows)
    return SearchExamples(
        user=search_users[rows].astype(np.int32),
        target_row=rows.astype(np.int64),
        rec_end=rec_end,
        search_end=search_end,
        item=np.asarray(log.click_items)[clicks].astype(np.int32),
    )
