"""Says what moved a recommendation: each click and search is left out, and the rest scored anew.

All variants of a history are scored as one batch. What is left out is an event as the model reads
it: of an item that was clicked twice one click, of a search its words and its clicks. The user's
own row, which training has made of all events, stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from serving.histories import OF_LOG, History, HistoryClick, HistorySearch
from serving.requests import Because, Moved, Request

_DIGITS = 6


class Scorer(Protocol):
    """Scores the catalogue after a history; `ranking.RankerAnswers` does.

    Attributes:
      data: of the run.
      max_steps: the most reasoning steps; None of a method that does not reason.
    """

    data: Any
    max_steps: int | None

    def scores(
        self, histories: Sequence[History], steps: Sequence[int | None] | None = None
    ) -> np.ndarray:
        """Scores every item after each history, float32 [n, V+1]."""
        ...

    def scores_of_every_k(self, history: History) -> np.ndarray:
        """Scores every item with 0..K reasoning steps, float32 [K+1, V+1]."""
        ...


Event = HistoryClick | HistorySearch


def events_read(history: History, rec_length: int, search_length: int) -> list[Event]:
    """Returns the events that a model of these lengths reads, clicks first, oldest first."""
    searches = [one for one in history.searches if one.words or one.clicked]
    return [
        *history.clicks[max(0, len(history.clicks) - rec_length) :],
        *searches[max(0, len(searches) - search_length) :],
    ]


def without(history: History, left_out: Sequence[Event], rec: int, search: int) -> History:
    """Returns the history of the events that a model reads, less some of them.

    Older events do not take the place of those left out.
    """
    gone = {id(one) for one in left_out}
    rest = [one for one in events_read(history, rec, search) if id(one) not in gone]
    return dataclasses.replace(
        history,
        clicks=tuple(one for one in rest if isinstance(one, HistoryClick)),
        searches=tuple(one for one in rest if isinstance(one, HistorySearch)),
    )


def ranks(scores: np.ndarray, allowed: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Returns the ranks [..., n], from 1, of items among those allowed; ties by lower number.

    Args:
      scores: float32 [..., V+1].
      allowed: bool [V+1].
      items: numbers [n], allowed.
    """
    numbers = np.flatnonzero(allowed)
    every = scores[..., numbers]
    places = []
    for item in items.tolist():
        own = scores[..., item][..., None]
        ahead = (every > own) | ((every == own) & (numbers < item))
        places.append(ahead.sum(-1) + 1)
    return np.stack(places, -1) if places else np.zeros((*scores.shape[:-1], 0), np.int64)


def leave_one_out(
    scorer: Scorer, history: History, steps: int | None
) -> tuple[list[Event], np.ndarray]:
    """Scores a history less each of its events.

    Returns:
      The n events that the model reads, and float32 [n, V+1].
    """
    config = scorer.data.shape(1)
    rec, search = config.rec_length, config.search_length
    events = events_read(history, rec, search)
    variants = [without(history, [event], rec, search) for event in events]
    if not variants:
        return [], np.zeros((0, scorer.data.log.num_items + 1), np.float32)
    return events, scorer.scores(variants, [steps] * len(variants))


def reasons(
    scorer: Scorer,
    request: Request,
    history: History,
    scores: np.ndarray,
    items: np.ndarray,
    left_out: np.ndarray,
    candidates: np.ndarray | None,
) -> Iterator[Because]:
    """Yields why each of the recommended items stands where it stands.

    Args:
      scores: float32 [V+1], of the whole history.
      items: numbers of the recommended items.
      left_out, candidates: as of `core.best_items.best_items`; ranks are among the items that
        could be chosen.
    """
    allowed = np.full(len(scores), candidates is None)
    if candidates is not None:
        allowed[candidates] = True
    allowed[left_out] = False
    allowed[0] = False
    events, of_variants = leave_one_out(scorer, history, request.reasoning_steps)
    rank = ranks(scores, allowed, items)
    variant_ranks = ranks(of_variants, allowed, items)
    by_step = None
    if scorer.max_steps is not None:
        by_step = ranks(scorer.scores_of_every_k(history), allowed, items)
    log = scorer.data.log
    for place, item in enumerate(items.tolist()):
        moved = [
            Moved(
                **_described(log, event),
                score=round(float(scores[item] - of_variants[row, item]), _DIGITS),
                rank=int(variant_ranks[row, place] - rank[place]),
            )
            for row, event in enumerate(events)
        ]
        moved.sort(key=lambda one: -abs(one.score))
        yield Because(
            moved=tuple(moved),
            rank_by_step=None if by_step is None else tuple(by_step[:, place].tolist()),
        )


def _described(log: Any, event: Event) -> dict[str, Any]:
    given = None if event.given == OF_LOG else event.given
    if isinstance(event, HistoryClick):
        return {"kind": "click", "item": str(log.item_ids[event.item]), "given": given}
    return {
        "kind": "search",
        "query": " ".join(event.text),
        "clicked": tuple(str(log.item_ids[item]) for item in event.clicked),
        "given": given,
    }
