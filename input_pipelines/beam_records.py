"""Makes a record of each user of a `csv_log` in an Apache Beam pipeline, for TFDS.

These transforms are not in `readers.csv_log_builder`, because `tfds build` imports that file by a
name that Beam's workers do not know.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from input_pipelines import beam_engine, histories
from input_pipelines.log_checks import validate_log
from input_pipelines.prepared_log import load_log, save_log

# Users whose records one worker makes at a time.
_USERS = 4096


class Records(beam.PTransform):
    """Makes (user, record) of every user of a plan's log."""

    def __init__(self, plan: beam_engine.Plan):
        super().__init__()
        self._plan = plan

    def expand(self, pipeline: Any) -> Any:
        return (
            pipeline
            | "make parts" >> beam_engine.Parts(self._plan)
            | "wait for all parts" >> beam.combiners.ToList()
            | "join parts" >> beam.FlatMap(_join, self._plan)
            | "spread users" >> beam.Reshuffle()
            | "make records" >> beam.FlatMap(_records, _place(self._plan))
        )


def _place(plan: beam_engine.Plan) -> str:
    return os.path.join(plan.job.folder, "whole")


def _join(parts: Sequence[int], plan: beam_engine.Plan) -> list[int]:
    """Saves the whole log; returns the first users of the pieces that records are made of."""
    del parts  # they are in the plan's folder
    log = beam_engine.log_of_parts(plan)
    validate_log(log)
    save_log(log, _place(plan))
    return list(range(1, log.num_users + 1, _USERS))


def _records(first: int, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (user, record) of up to `_USERS` users from number `first` on."""
    log = load_log(folder)
    ends = log.click_offsets
    for user in range(first, min(first + _USERS, log.num_users + 1)):
        clicks = slice(*log.rec_offsets[user : user + 2])
        begin, end = log.search_offsets[user : user + 2]
        clicked = np.asarray(log.click_items[ends[begin] : ends[end]])
        name = str(log.user_ids[user])
        yield (
            name,
            {
                "user": name,
                "click_item": [str(log.item_ids[item]) for item in log.rec_items[clicks]],
                "click_time": np.asarray(log.rec_times[clicks]),
                "search_time": np.asarray(log.search_times[begin:end]),
                "search_begin": [log.asked_at(s) for s in range(begin, end)],
                "search_query": [histories.query_text(log, s) for s in range(begin, end)],
                "search_click_count": np.diff(ends[begin : end + 1]),
                "search_click_item": [str(log.item_ids[item]) for item in clicked],
            },
        )
