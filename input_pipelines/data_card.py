"""Describes a log in numbers: the data card."""

from __future__ import annotations

from typing import Any

import numpy as np

from input_pipelines import random_streams, times
from input_pipelines.log import Log

_QUANTILES = (0, 0.25, 0.5, 0.75, 0.95, 1)


def spread(counts: np.ndarray) -> dict[str, float]:
    """Returns quantiles of counts by their names; {} without counts."""
    if not len(counts):
        return {}
    quantiles = np.quantile(counts, _QUANTILES).tolist()
    return {f"{q:g}": value for q, value in zip(_QUANTILES, quantiles, strict=True)}


def _time_range(when: np.ndarray, unit: str) -> list[str]:
    """Returns the first and the last time; an empty list without times."""
    return [times.shown(int(f(when)), unit) for f in (np.min, np.max)] if len(when) else []


def _share_of_ties(when: np.ndarray, offsets: np.ndarray) -> float:
    """Returns the share of events at the time of another event of their kind and user."""
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    # Times ascend within a user: equal ones stand beside each other.
    tied = np.zeros(len(when) + 1, bool)
    tied[1:-1] = (np.diff(when) == 0) & (np.diff(users) == 0)
    return float((tied[1:] | tied[:-1]).mean()) if len(when) else 0.0


def describe(log: Log) -> dict[str, Any]:
    """Returns the data card: counts, shares, quantiles of history lengths, the reader's notes.

    `searched_items_without_click` is the share of the items clicked in searches, each time counted,
    that no click of the log has. A large share shows that searches write ids in another way.
    """
    clicks = np.diff(log.rec_offsets)[1:]
    searches = np.diff(log.search_offsets)[1:]
    total = max(len(log.search_times), 1)
    worded = np.diff(log.word_offsets) > 0
    queries = random_streams.keys_of_rows(np.asarray(log.word_offsets), np.asarray(log.word_ids))
    optional = {}
    if log.unclicked_items is not None:
        optional["shown_in_searches_without_click"] = len(log.unclicked_items)
    if log.places is not None:
        optional["places"] = len(log.places) - 1
    if log.profile_offsets is not None:
        optional["users_with_profile"] = int((np.diff(log.profile_offsets) > 0).sum())
    if log.fact_offsets is not None:
        optional["items_with_facts"] = int((np.diff(log.fact_offsets) > 0).sum())
    clicked = np.zeros(log.num_items + 1, bool)
    clicked[np.asarray(log.rec_items)] = True
    searched = np.asarray(log.click_items)
    return {
        "name": log.name + (" (sample data)" if log.is_sample else ""),
        "users": log.num_users,
        "items": log.num_items,
        "words": log.num_words,
        "queries": len(np.unique(queries[worded])),
        "clicks": len(log.rec_items),
        "searches": len(log.search_times),
        "clicks_in_searches": len(log.click_items),
        "users_without_click": int((clicks == 0).sum()),
        "users_without_search": int((searches == 0).sum()),
        "searches_without_click": float((np.diff(log.click_offsets) == 0).sum() / total),
        "searches_without_word": float((np.diff(log.word_offsets) == 0).sum() / total),
        "clicks_per_user": spread(clicks),
        "searches_per_user": spread(searches),
        "time_unit": log.time_unit,
        "click_times": _time_range(np.asarray(log.rec_times), log.time_unit),
        "search_times": _time_range(np.asarray(log.search_times), log.time_unit),
        "clicks_at_equal_times": _share_of_ties(np.asarray(log.rec_times), log.rec_offsets),
        "searches_at_equal_times": _share_of_ties(np.asarray(log.search_times), log.search_offsets),
        "searched_items_without_click": float((~clicked[searched]).sum() / max(len(searched), 1)),
        **log.reading,
        **optional,
    }
