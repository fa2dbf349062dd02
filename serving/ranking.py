"""Answers requests with a ranker or a fitted baseline: scores the whole catalogue, then chooses."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core.best_items import best_items
from core.errors import UserError
from experiments.restored import Restored
from input_pipelines import batches
from lcrsr.embedding import look_up
from lcrsr.evaluation import Evaluator
from serving import because
from serving.asking import each_kind, no_known_word
from serving.histories import History, HistoryReader, log_of, title_of
from serving.requests import Answer, Because, Recommended, Request

# Requests scored at once; fewer are filled up to the next size.
SIZES = (1, 8, 64)
# Digits after the point, as launch.predict writes them.
_DIGITS = 6
# Items of the catalogue scored at once for every number of steps.
_CHUNK = 256


def batch_size(count: int) -> int:
    """Returns the smallest of `SIZES` that holds so many requests, else the largest."""
    return next((size for size in SIZES if count <= size), SIZES[-1])


class RankerAnswers:
    """Answers requests for recommendations with the scores of a `RecommendationExperiment`.

    Args:
      restored: as of `recommender.Recommender`.

    Attributes:
      reader: reads histories.
      max_steps: as of `requests.Answers`.
      tasks: 'recommendation', and 'search' where the ranker was trained on it.
    """

    def __init__(self, restored: Restored):
        experiment = restored.experiment
        self.data = experiment.data
        answers_searches = hasattr(experiment.ranker, "score_query")
        self.tasks = experiment.ranker.tasks if answers_searches else experiment.tasks
        self.reader = HistoryReader(self.data)
        self._ranker = experiment.ranker
        self._params, self._tables = restored.params, None
        if self._ranker is None:
            self._evaluator: Any = experiment.evaluator
        else:
            # The words of items are added once, not for every question.
            self._tables = jax.device_put(restored.tables_with_words)
            self._params = jax.device_put(self._params)
            self._evaluator = Evaluator(self._ranker, (), num_items=self.data.log.num_items)
            self._every_k = jax.jit(self._score_every_k)
        self.max_steps: int | None = getattr(self._ranker, "max_steps", None)
        self._probabilities = getattr(self._ranker, "gives_probabilities", False)

    @functools.cached_property
    def _shape(self) -> batches.BatchShape:
        return self.data.shape(1)

    def answer(self, requests: Sequence[Request]) -> list[Answer | UserError]:
        """Answers requests for recommendations together, and those of searches."""
        return each_kind(self._together, requests, SIZES[-1])

    def _together(self, requests: Sequence[Request]) -> list[Answer | UserError]:
        """Answers at most 64 requests, all with a query or all without."""
        histories, queries = zip(*map(self.reader.asked, requests), strict=True)
        searches = requests[0].query is not None
        steps = [request.reasoning_steps for request in requests]
        scores = self.scores(histories, steps, queries if searches else None)
        return [
            no_known_word(request)
            if searches and not queries[row]
            else self._answered(request, histories[row], scores[row])
            for row, request in enumerate(requests)
        ]

    def batch(
        self, histories: Sequence[History], queries: Sequence[Sequence[int]] | None = None
    ) -> dict[str, np.ndarray]:
        """Returns the batch of at most 64 histories, filled up to one of `SIZES`.

        Args:
          queries: the words of the current search of each, by numbers.
        """
        log, examples = log_of(self.data.log, histories)
        size = batch_size(len(histories))
        places = np.arange(size)
        real = places < len(histories)
        rows = np.where(real, places, 0)
        no_candidates = np.zeros((size, 1), np.int32)
        batch = batches.assemble(log, examples, rows, self._shape, no_candidates, mask=real)
        users = np.array([history.user for history in histories], np.int32)
        batch = self.data.adapt(batch | {"user": users[rows]})
        if queries is not None:
            query = np.zeros((size, self._shape.words), np.int32)
            for row, words in enumerate(queries):
                first_words = words[: self._shape.words]
                query[row, : len(first_words)] = first_words
            batch["query"] = query
        return batch

    def scores(
        self,
        histories: Sequence[History],
        steps: Sequence[int | None] | None = None,
        queries: Sequence[Sequence[int]] | None = None,
    ) -> np.ndarray:
        """Scores every item after each of some histories, float32 [n, V+1].

        Args:
          steps: K for each history, of a method that reasons; None is the run's own.
          queries: as of `batch`, for the scores of searches.
        """
        parts = []
        for start in range(0, len(histories), SIZES[-1]):
            part = histories[start : start + SIZES[-1]]
            asked = None if queries is None else queries[start : start + SIZES[-1]]
            batch, numbers = self.batch(part, asked), {}
            if self.max_steps is not None:
                own = self._ranker.numbers["active_steps"]
                active = np.full((len(batch["user"]), 1), own, np.int32)
                for row, k in enumerate((steps or [])[start : start + len(part)]):
                    active[row] = own if k is None else k
                numbers["active_steps"] = active
            scores = self._evaluator.scores(self._params, self._tables, batch, **numbers)
            parts.append(scores[: len(part)])
        return np.concatenate(parts)

    def scores_of_every_k(self, history: History) -> np.ndarray:
        """Scores every item with 0..K reasoning steps, float32 [K+1, V+1], from one pass."""
        batch = self.batch([history])
        return np.asarray(self._every_k(self._params, self._tables, batch))[:, 0]

    def _score_every_k(self, params, tables, batch):
        rows = look_up(tables, batch)
        users = self._ranker.represent(params, batch, rows)
        items = tables["item"]
        missing = -len(items) % _CHUNK
        chunks = jnp.pad(items, ((0, missing), (0, 0))).reshape(-1, _CHUNK, items.shape[-1])
        scores = jax.lax.map(
            lambda chunk: self._ranker.score_every_k(params, users, rows, chunk), chunks
        )
        # [chunks, K+1, B, n] to [K+1, B, chunks * n].
        flat = jnp.moveaxis(scores, 0, 2).reshape(*scores.shape[1:3], -1)
        return flat[..., : self.data.log.num_items + 1].astype(jnp.float32)

    def _answered(
        self, request: Request, history: History, scores: np.ndarray
    ) -> Answer | UserError:
        if np.isnan(scores[1:]).any():
            return UserError(
                "expected scores that are numbers, found NaN; pass another stage of the run"
            )
        candidates, left_out, skipped = self.reader.choice(request, history)
        chosen = best_items(scores, left_out, candidates, request.k)
        reasons: list[Because | None] = [None] * len(chosen)
        if request.because and request.query is not None:
            return UserError(
                "expected because of recommendations, found a query; leave one of them out"
            )
        if request.because:
            reasons = list(
                because.reasons(self, request, history, scores, chosen, left_out, candidates)
            )
        log = self.data.log
        return Answer(
            items=tuple(
                Recommended(
                    item=str(log.item_ids[item]),
                    title=title_of(log, item),
                    score=round(score, _DIGITS),
                    probability=self._probability(score),
                    because=reason,
                )
                for item, score, reason in zip(
                    chosen.tolist(), scores[chosen].tolist(), reasons, strict=True
                )
            ),
            known_user=history.user > 0,
            skipped_items=skipped,
            skipped_words=history.skipped_words,
            skipped_events=history.skipped_events,
        )

    def _probability(self, score: float) -> float | None:
        if not self._probabilities:
            return None
        return round(1.0 / (1.0 + float(np.exp(-score))), _DIGITS)
