"""Turns scores of the catalogue into answers: chooses, names and explains the items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.best_items import best_items
from core.errors import UserError
from serving import because
from serving.asking import each_kind, no_known_word
from serving.histories import History, HistoryReader
from serving.requests import Answer, Because, Recommended, Request

# Digits after the point, as launch.predict writes them.
_DIGITS = 6


class Answering:
    """Answers requests by the scores of a model: a `because.Scorer` is made of it.

    Attributes:
      data: with the `log` and the lengths of histories (`shape`).
      reader: reads histories.
      max_steps: as of `requests.Answers`.
      gives_probabilities: whether the sigmoid of a score is a probability.
    """

    data: Any
    reader: HistoryReader
    max_steps: int | None
    gives_probabilities: bool
    titles: Mapping[str, str]

    def scores(
        self,
        histories: Sequence[History],
        steps: Sequence[int | None] | None = None,
        queries: Sequence[Sequence[int]] | None = None,
    ) -> np.ndarray:
        """Scores every item after each history, float32 [n, V+1].

        Args:
          steps: K for each history, of a model that reasons; None is the run's own.
          queries: numbers of the words of a search of each, for its scores.
        """
        raise NotImplementedError

    def scores_of_every_k(self, history: History) -> np.ndarray:
        """Scores every item with 0..K reasoning steps, float32 [K+1, V+1]."""
        raise NotImplementedError

    def answer(self, requests: Sequence[Request]) -> list[Answer | UserError]:
        """Answers requests that are known to be answerable."""
        return each_kind(self._together, requests, max(1, len(requests)))

    def _together(self, requests: Sequence[Request]) -> list[Answer | UserError]:
        """Answers requests, all with a query or all without."""
        histories, queries = zip(*map(self.reader.asked, requests), strict=True)
        searches = requests[0].query is not None
        steps = [request.reasoning_steps for request in requests]
        scores = self.scores(histories, steps, queries if searches else None)
        return [
            no_known_word(request)
            if searches and not queries[row]
            else self.answered(request, histories[row], scores[row], self)
            for row, request in enumerate(requests)
        ]

    def answered(
        self,
        request: Request,
        history: History,
        scores: np.ndarray,
        scorer: because.Scorer,
        numbers: np.ndarray | None = None,
    ) -> Answer | UserError:
        """Chooses the best items by their scores.

        Args:
          scores: float32 [n+1], the first of padding.
          scorer: made these scores, and says why.
          numbers: int [n+1], of the items that are scored; None is the whole catalogue.
        """
        if np.isnan(scores[1:]).any():
            return UserError("expected scores that are numbers, found NaN; export the run again")
        if request.because and request.query is not None:
            return UserError(
                "expected because of recommendations, found a query; leave one of them out"
            )
        candidates, left_out, skipped = self.reader.choice(request, history)
        if numbers is not None:
            left_out = np.flatnonzero(np.isin(numbers, left_out))
            if candidates is not None:
                candidates = np.flatnonzero(np.isin(numbers, candidates))
        chosen = best_items(scores, left_out, candidates, request.k)
        chosen = chosen[np.isfinite(scores[chosen])]
        reasons: list[Because | None] = [None] * len(chosen)
        if request.because:
            reasons = list(
                because.reasons(scorer, request, history, scores, chosen, left_out, candidates)
            )
        items = chosen if numbers is None else numbers[chosen]
        return Answer(
            items=tuple(
                self._item(item, score, reason)
                for item, score, reason in zip(
                    items.tolist(), scores[chosen].tolist(), reasons, strict=True
                )
            ),
            known_user=history.user > 0,
            skipped_items=skipped,
            skipped_words=history.skipped_words,
            skipped_events=history.skipped_events,
        )

    def _item(self, number: int, score: float, reason: Because | None) -> Recommended:
        item = str(self.data.log.item_ids[number])
        probability = round(1.0 / (1.0 + math.exp(-score)), _DIGITS)
        return Recommended(
            item=item,
            title=self.titles[item],
            score=round(score, _DIGITS),
            probability=probability if self.gives_probabilities else None,
            because=reason,
        )
