"""Evaluates CRS and the methods beside it: searches against the whole catalogue.

Items seen before stay in the ranking (`search/catalogue`), since a search may look for one again;
`search/full`, which GenSAR is held to, is without them. Where the log has what a search showed,
that can be ranked instead (`search/impressions`): its clicked item among those not clicked. A
search with several clicks is ranked once for each of them, and its other clicks are left out of
the ranking under every protocol: they are right answers too. Sampled negatives (`search/neg99`,
`search/neg99pop`, `search/bm25_99`) are moreover nothing that the user has touched up to then.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from ml_collections import config_dict

from core import metrics
from core.errors import UserError
from input_pipelines.dataset import Dataset
from input_pipelines.log import Log
from input_pipelines.search_task import SearchExamples

PROTOCOL = "search/catalogue"
IMPRESSIONS = "search/impressions"
NAMES = tuple(column.removeprefix("search/") for column in (PROTOCOL, IMPRESSIONS))
_GROUPS = 3


def evaluated(config: config_dict.ConfigDict) -> tuple[str, ...]:
    """Returns the columns of a run's table. Raises UserError where one does not exist."""
    names = config.eval.search_protocols
    return tuple(column for name in names for column in columns("search", name))


def check(config: config_dict.ConfigDict) -> None:
    """Raises UserError where `config.eval.selection` is no metric of the run's protocols."""
    every = evaluated(config)
    known = [metrics.full_name(name, column) for column in every for name in config.eval.metrics]
    if config.eval.selection not in known:
        raise UserError(
            f"expected config.eval.selection of {', '.join(known)}, found "
            f"{config.eval.selection!r}; pass one of them"
        )


def columns(task: str, protocol: str) -> tuple[str, ...]:
    """Returns the columns of a protocol. Raises UserError for another task, no such protocol."""
    if task != "search" or protocol not in NAMES:
        raise UserError(
            f"expected --task=search --protocol={' or '.join(NAMES)} of this run, found {task!r} "
            f"and {protocol!r}; pass these"
        )
    return (f"search/{protocol}",)


def held_out(config: config_dict.ConfigDict, data: Dataset, split: str) -> SearchExamples:
    """Returns the searches of a split to evaluate, `config.eval.SPLIT_users` at most (0: all)."""
    examples, _ = data.chosen("search", split, config.eval[f"{split}_users"])
    assert isinstance(examples, SearchExamples)
    return examples


def impressions(log: Log, examples: SearchExamples) -> np.ndarray:
    """Returns each search's items int32 [E, N]: the target, the unclicked items, padding 0.

    Other clicked items of a search are not among them, and each item is there once.

    Raises:
      UserError: the log does not say what searches showed, or these showed nothing unclicked.
    """
    ends = log.click_offsets
    shown = []
    for row in examples.target_row.tolist():
        clicked = set(log.click_items[ends[row] : ends[row + 1]].tolist())
        shown.append([i for i in dict.fromkeys(log.unclicked(row).tolist()) if i not in clicked])
    most = max(map(len, shown), default=0)
    if not most:
        raise UserError(
            f"expected items shown and not clicked in the searches of {log.name}, found none; "
            "evaluate with --protocol=catalogue"
        )
    lists = np.zeros((len(examples), 1 + most), np.int32)
    lists[:, 0] = examples.item
    for row, items in enumerate(shown):
        lists[row, 1 : 1 + len(items)] = items
    return lists


def _ranked(shown: np.ndarray) -> np.ndarray:
    """Tells which rows hold more to rank than the target alone, bool [E]."""
    return np.any(shown[:, 1:] > 0, axis=1)


def add_impressions(sums: metrics.Sums, scores: np.ndarray, shown: np.ndarray) -> None:
    """Counts scores float [E, N] of `impressions`; rows of a target alone count nothing."""
    above, tied = map(np.asarray, metrics.target_ranks(scores, 0, shown > 0))
    sums.add(above, tied, _ranked(shown), (np.isnan(scores) & (shown > 0)).any(1))


def users(log: Log, examples: SearchExamples, protocol: str) -> np.ndarray:
    """Returns the users of the examples that count under a protocol, in their order."""
    return examples.user[counted(log, examples, protocol)]


def counted(log: Log, examples: SearchExamples, protocol: str) -> np.ndarray:
    """Tells which examples count under a protocol, bool [E]."""
    if protocol != IMPRESSIONS:
        return np.ones(len(examples), bool)
    return _ranked(impressions(log, examples))


def asked_before(log: Log, examples: SearchExamples) -> np.ndarray:
    """Counts how often each example's user asked for something else than right before: int [E].

    A search without words asks for nothing, and one query may have several rows (click-outs).
    """
    words, ends = np.asarray(log.word_ids), np.asarray(log.word_offsets)
    count = np.zeros(len(examples), np.int64)
    changes: dict[int, list[int]] = {}
    for row, user in enumerate(examples.user.tolist()):
        first, end = (int(log.search_offsets[user + i]) for i in range(2))
        if user not in changes:
            queries = [words[ends[s] : ends[s + 1]].tolist() for s in range(first, end)]
            before = [[], *queries]
            new = [bool(q) and q != p for p, q in zip(before, queries, strict=False)]
            changes[user] = [0, *itertools.accumulate(map(int, new))]
        count[row] = changes[user][int(examples.search_end[row]) - first]
    return count


def groups_of_users(data: Dataset, examples: SearchExamples) -> list[tuple[int, int, np.ndarray]]:
    """Forms three groups by the number of queries before the one that is asked (CRS 4.5).

    Returns:
      The fewest and the most queries of a group, and which examples it has, bool [E].
    """
    count = asked_before(data.log, examples)
    # Users of one count stay together.
    edges = np.quantile(count, np.arange(1, _GROUPS) / _GROUPS)
    group = np.searchsorted(edges, count, side="left")
    every = [group == g for g in range(_GROUPS)]
    return [(int(count[c].min()), int(count[c].max()), c) for c in every if c.any()]


def user_groups(
    data: Dataset, examples: SearchExamples, sums: metrics.Sums
) -> list[dict[str, Any]]:
    """Returns hr@10, or else the last metric of `sums`, of each of `groups_of_users`.

    Args:
      sums: of `examples`, in their order.
    """
    name = "hr@10" if "hr@10" in sums.names else sums.names[-1]
    values = sums.per_example()[name]
    return [
        {
            "queries": [fewest, most],
            "examples": int(chosen.sum()),
            name: float(values[chosen].mean()),
        }
        for fewest, most, chosen in groups_of_users(data, examples)
    ]
