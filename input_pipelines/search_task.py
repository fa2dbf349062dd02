"""Makes the search task's examples: for a query, the clicked item is to be ranked first."""

from __future__ import annotations

import dataclasses

import numpy as np

from input_pipelines.log import Log
from input_pipelines.splits import Examples, Splits, search_history_ends

_NEVER = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class SearchExamples(Examples):
    """Holds targets (user, search, clicked item); `target_row` is the row of the search.

    Attributes:
      item: int32 [E], the clicked item.
    """

    item: np.ndarray


def training_searches(log: Log, splits: Splits) -> SearchExamples:
    """Returns every click of a training search that has words.

    A search trains if it happened before the first click that its user keeps for validation or
    test; under 'global_time', and under a published split that is cut at a time, before the first
    such click of anyone; under 'by_user' if its user keeps no click at all.
    """
    users, until = _users_of_searches(log), _first_held_out(log, splits)
    return _examples(log, np.asarray(log.search_times) < until[users])


def held_out_searches(log: Log, splits: Splits, split: str) -> SearchExamples:
    """Returns every click of a split's searches that have words; none of these searches trains.

    Of each user's searches that do not train the last one tests and the others validate; a search
    at the time of the user's validation click is a face of that event and validates. Under
    'global_time' the searches from the first test click of anyone on test; under 'by_user' it is
    the last search of each of the split's users.

    Args:
      split: 'validation' or 'test'.
    """
    users, times = _users_of_searches(log), np.asarray(log.search_times)
    until = _first_held_out(log, splits)[users]
    held_out = (times >= until) & _usable(log)
    if splits.name == "by_user":
        chosen = np.zeros(log.num_users + 1, bool)
        chosen[getattr(splits, split).user] = True
        last = np.full(log.num_users + 1, -1)
        rows = np.flatnonzero(held_out & chosen[users])
        np.maximum.at(last, users[rows], rows)
        return _examples(log, np.arange(len(times)) == last[users])
    if splits.name == "global_time":
        tests = times >= log.rec_times[splits.test.target_row].min(initial=_NEVER)
    else:
        last = np.full(log.num_users + 1, -1)
        rows = np.flatnonzero(held_out)
        np.maximum.at(last, users[rows], rows)
        # `until` is the validation click's time wherever the user has clicks after it.
        validates = (times == until) & (_last_click(log)[users] > until)
        tests = (np.arange(len(times)) == last[users]) & ~validates
    return _examples(log, held_out & (tests if split == "test" else ~tests))


def targets(log: Log, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Returns (item int32, time int64) [E] of what each example is to rank first."""
    if isinstance(examples, SearchExamples):
        return examples.item, log.search_times[examples.target_row]
    rows = examples.target_row
    return log.rec_items[rows].astype(np.int32), log.rec_times[rows]


def _users_of_searches(log: Log) -> np.ndarray:
    return np.repeat(np.arange(log.num_users + 1), np.diff(log.search_offsets))


def _usable(log: Log) -> np.ndarray:
    return (np.diff(log.word_offsets) > 0) & (np.diff(log.click_offsets) > 0)


def _first_held_out(log: Log, splits: Splits) -> np.ndarray:
    """Returns the time of each user's first click that does not train, int64 [U+1]."""
    held_out = np.setdiff1d(np.arange(len(log.rec_items)), splits.training_rows)
    times = np.asarray(log.rec_times)[held_out]
    until = np.full(log.num_users + 1, _NEVER)
    if splits.name == "by_user":
        until[splits.validation.user] = until[splits.test.user] = np.iinfo(np.int64).min
    elif splits.name == "global_time" or _cut_at_a_time(log, splits, times):
        until[:] = times.min(initial=_NEVER)
    else:
        users = np.repeat(np.arange(log.num_users + 1), np.diff(log.rec_offsets))[held_out]
        np.minimum.at(until, users, times)
    return until


def _cut_at_a_time(log: Log, splits: Splits, held_out: np.ndarray) -> bool:
    """Tells whether a published split trains on what is before all times that are held out."""
    trained = np.asarray(log.rec_times)[splits.training_rows]
    never = np.iinfo(np.int64).min
    return splits.name == "published" and trained.max(initial=never) < held_out.min(initial=_NEVER)


def _last_click(log: Log) -> np.ndarray:
    """Returns the time of each user's last click, int64 [U+1]; the least integer without any."""
    last = np.full(log.num_users + 1, np.iinfo(np.int64).min)
    users = np.repeat(np.arange(log.num_users + 1), np.diff(log.rec_offsets))
    np.maximum.at(last, users, np.asarray(log.rec_times))
    return last


def _examples(log: Log, chosen: np.ndarray) -> SearchExamples:
    """Returns the clicks of the searches that are `chosen` [S] and have words."""
    chosen = chosen & _usable(log)
    users = _users_of_searches(log)
    searches = np.repeat(np.arange(len(log.search_times)), np.diff(log.click_offsets))
    clicks = np.flatnonzero(chosen[searches])
    rows = searches[clicks]
    rec_end, search_end = search_history_ends(log, rows)
    return SearchExamples(
        user=users[rows].astype(np.int32),
        target_row=rows.astype(np.int64),
        rec_end=rec_end,
        search_end=search_end,
        item=np.asarray(log.click_items)[clicks].astype(np.int32),
    )
