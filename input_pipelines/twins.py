"""Interactions that a log holds twice: a click, and a search of its user and time that clicked it.

Sources whose purchases or click-outs answer searches give both faces (`amazon_beauty`, `trivago`).
Who reads a history as text, or counts, takes the two for one.
"""

from __future__ import annotations

import numpy as np

from input_pipelines.log import Log
from input_pipelines.search_task import SearchExamples


def twin_clicks(log: Log, most: int) -> np.ndarray:
    """Which clicks some search of the same user and time holds too, bool [R].

    Args:
      most: clicked items of a search that count, the first.
    """
    searches = np.repeat(np.arange(len(log.search_times)), np.diff(log.click_offsets))
    first = np.arange(len(searches)) - np.asarray(log.click_offsets)[searches] < most
    searches, items = searches[first], np.asarray(log.click_items)[first]
    users, times = _users(log.search_offsets)[searches], np.asarray(log.search_times)[searches]
    return _among(_clicks(log), (users, times, items))


def have_twins(log: Log, examples: SearchExamples) -> np.ndarray:
    """Which examples are clicks of the log too, bool [E]."""
    times = np.asarray(log.search_times)[examples.target_row]
    return _among((examples.user, times, examples.item), _clicks(log))


def _clicks(log: Log) -> tuple[np.ndarray, ...]:
    return _users(log.rec_offsets), np.asarray(log.rec_times), np.asarray(log.rec_items)


def _users(offsets: np.ndarray) -> np.ndarray:
    """The user of every row."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def _among(wanted: tuple[np.ndarray, ...], known: tuple[np.ndarray, ...]) -> np.ndarray:
    """Which of the N rows `wanted` are among `known`, bool [N]; rows are tuples of columns."""
    columns = [np.concatenate(pair).astype(np.int64) for pair in zip(wanted, known, strict=True)]
    order = np.lexsort(columns)
    starts = np.zeros(len(order), bool)
    for column in columns:
        starts[1:] |= np.diff(column[order]) != 0
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(starts)
    count = len(wanted[0])
    found = np.zeros(len(order), bool)
    found[group[count:]] = True
    return found[group[:count]]
