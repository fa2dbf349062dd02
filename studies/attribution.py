"""Asks whether what a run names as the reason of a recommendation is its reason, on sample data.

The sample's generator knows which searches announce the next click: those that name a topic; the
others are noise. A user counts where the target is among the first items and the search that
announced it is in the history that the model reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from core.errors import UserError
from experiments.restored import Restored
from input_pipelines.log import Log
from input_pipelines.sample.truth import announces
from input_pipelines.splits import Examples
from serving.because import Event, events_read, leave_one_out, ranks, without
from serving.histories import History, HistorySearch
from serving.ranking import RankerAnswers
from serving.requests import Request

# Of the target, to be explained.
_TOP = 5
# Shares of the events that are deleted.
SHARES = (0.1, 0.2, 0.3, 0.5)
_RANDOM_ORDERS = 5


@dataclasses.dataclass(frozen=True)
class Attribution:
    """Holds what the users of a split tell.

    Attributes:
      users: whose target is among the first 5, and whose announcing search the model reads.
      found: of these, where the search that moved the target's score most is the announcing one.
      among_two: likewise, of those with another search beside it: there a guess is seldom right.
      others: how many these are.
      chance: how often a search drawn at random would be the announcing one, of `others`.
      shares: of the events deleted.
      moving, random: the mean fall of the target's score once that share is deleted, those that
        moved it up most first, or in random order.
    """

    users: int
    found: float
    among_two: float
    others: int
    chance: float
    shares: tuple[float, ...]
    moving: tuple[float, ...]
    random: tuple[float, ...]

    def lines(self) -> list[str]:
        """Returns the figures for people."""
        rows = [
            f"{self.users} users with the target in the top {_TOP} and its search in the history",
            f"the most moving search is the announcing one: {self.found:.1%} "
            f"({self.among_two:.1%} of {self.others} users with two searches or more, "
            f"where chance is {self.chance:.1%})",
            "deleted  fall, most moving first  fall, in random order",
        ]
        for share, moving, random in zip(self.shares, self.moving, self.random, strict=True):
            rows.append(f"{share:7.0%}  {moving:23.3f}  {random:21.3f}")
        return rows


def attribution(
    restored: Restored, split: str = "test", most: int = 500, seed: int = 0
) -> Attribution:
    """Explains the targets of a split, each from the history before it.

    Args:
      restored: a ranker's run on sample data, with the data, on one device.
      most: examples at most, the first ones.
      seed: of the random orders.

    Raises:
      UserError: the run is not on sample data, or there is no user to count.
    """
    data = restored.data
    if not data.log.is_sample:
        raise UserError(
            f"expected a run on sample data, found {data.label}; elsewhere nobody "
            "knows which searches announce a click"
        )
    scorer = RankerAnswers(restored)
    examples = data.split(split)
    examples = examples.take(np.arange(min(most, len(examples))))
    rng = np.random.default_rng(seed)
    found, counts = [], []
    falls: list[list[list[float]]] = []
    for row in range(len(examples)):
        history, target = _before(scorer, data.log, examples, row)
        announcing = _announcing(data.log, history)
        shape = data.shape(1)
        events = events_read(history, shape.rec_length, shape.search_length)
        if announcing is None or not any(event is announcing for event in events):
            continue
        scores = scorer.scores([history])[0]
        allowed = np.ones(len(scores), bool)
        allowed[[0, *(i for i in history.touched.tolist() if i != target)]] = False
        if ranks(scores, allowed, np.array([target]))[0] > _TOP:
            continue
        read, less = leave_one_out(scorer, history, None)
        moved = scores[target] - less[:, target]
        searches = [place for place, event in enumerate(read) if isinstance(event, HistorySearch)]
        strongest = max(searches, key=lambda place: abs(moved[place]))
        found.append(read[strongest] is announcing)
        counts.append(len(searches))
        falls.append(_falls(scorer, history, read, moved, target, float(scores[target]), rng))
    if not found:
        raise UserError(
            f"expected users of {split} whose target is in the top {_TOP}, found none; train longer"
        )
    right, many = np.array(found, float), np.array(counts) > 1
    moving, random = np.array(falls).mean(0)
    return Attribution(
        users=len(found),
        found=float(right.mean()),
        among_two=float(right[many].mean()) if many.any() else float("nan"),
        others=int(many.sum()),
        chance=float((1 / np.array(counts)[many]).mean()) if many.any() else float("nan"),
        shares=SHARES,
        moving=tuple(moving.tolist()),
        random=tuple(random.tolist()),
    )


def _before(scorer: RankerAnswers, log: Log, examples: Examples, row: int) -> tuple[History, int]:
    """Returns the history before an example's target, and the target's number."""
    target_row = int(examples.target_row[row])
    user = str(log.user_ids[int(examples.user[row])])
    history = scorer.reader.read(Request(user=user, at=int(log.rec_times[target_row])))
    return history, int(log.rec_items[target_row])


def _announcing(log: Log, history: History) -> HistorySearch | None:
    """Returns the latest search that names a topic, if no click has come after it."""
    topical = [one for one in history.searches if announces(one.text)]
    if not topical:
        return None
    last_click = max((click.time for click in history.clicks), default=-1)
    return topical[-1] if topical[-1].time >= last_click else None


def _falls(
    scorer: RankerAnswers,
    history: History,
    events: Sequence[Event],
    moved: np.ndarray,
    target: int,
    whole: float,
    rng: np.random.Generator,
) -> list[list[float]]:
    """Returns how far the target's score falls at each share: [most moving first, random]."""
    shape = scorer.data.shape(1)
    orders = [np.argsort(-moved)]
    orders += [rng.permutation(len(events)) for _ in range(_RANDOM_ORDERS)]
    counts = [max(1, round(share * len(events))) for share in SHARES]
    variants = [
        without(
            history,
            [events[place] for place in order[:count]],
            shape.rec_length,
            shape.search_length,
        )
        for order in orders
        for count in counts
    ]
    scores = scorer.scores(variants)[:, target].reshape(len(orders), len(counts))
    falls = whole - scores
    return [falls[0].tolist(), falls[1:].mean(0).tolist()]
