"""Answers searches with CRS, which reasons about a user's context and then generates items.

One request is answered at a time, and every prompt has the same shape. A user of the log without
further events has the context of `launch.predict`, with what the log knows beside clicks and words
(places, items shown); others have what the request tells.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

from core.errors import UserError
from crs_jax.contexts import UserContext
from crs_jax.decoder_experiment import DecoderExperiment
from crs_jax.user_contexts import UserContexts
from experiments.restored import Restored
from serving.asking import each_alone
from serving.histories import History, HistoryReader, log_of, title_of
from serving.requests import Answer, Recommended, Request

_DIGITS = 6


class ReasonedAnswers:
    """Answers searches with a run of CRS; scores are log-likelihoods in nats.

    Args:
      restored: as of `recommender.Recommender`.

    Attributes:
      reader, max_steps: as of `ranking.RankerAnswers`.
      tasks: ('search',).
    """

    max_steps: int | None = None
    tasks = ("search",)

    def __init__(self, restored: Restored):
        experiment = restored.experiment
        assert isinstance(experiment, DecoderExperiment)
        self._experiment = experiment
        self._params, self._tables = restored.params, restored.tables
        self.data = experiment.data
        self.reader = HistoryReader(self.data)

    def answer(self, requests: Sequence[Request]) -> list[Answer | UserError]:
        """Answers requests, each on its own."""
        return each_alone(self._answered, requests)

    def _answered(self, request: Request) -> Answer:
        if request.because or request.candidates is not None:
            raise UserError(
                "expected because and candidates of a ranker's run, found a run of crs, which "
                "generates its answers; leave them out"
            )
        history = self.reader.read(request)
        left_out = set(self.reader.known(request.exclude).tolist())
        if not request.keep_seen:
            left_out |= set(history.touched.tolist())
        answers = self._experiment.answered(
            self._params,
            self._tables,
            [self._context(request, history)],
            min(request.k + len(left_out), self.data.log.num_items),
        )
        log = self.data.log
        ranked = zip(answers.items[0].tolist(), answers.scores[0].tolist(), strict=True)
        chosen = [(item, score) for item, score in ranked if item > 0 and item not in left_out]
        return Answer(
            items=tuple(
                Recommended(
                    item=str(log.item_ids[item]),
                    title=title_of(log, item),
                    score=round(score, _DIGITS),
                )
                for item, score in chosen[: request.k]
            ),
            known_user=history.user > 0,
            skipped_items=history.skipped_items,
            skipped_events=history.skipped_events,
        )

    def _context(self, request: Request, history: History) -> UserContext:
        assert request.query is not None
        query, log = self.data.query_text(request.query), self.data.log
        if not query:
            raise UserError(
                f"expected a query with words, found {request.query[:40]!r}; rephrase it"
            )
        user = history.user
        if user and request.at is None and not (request.clicks or request.searches):
            ends = int(log.rec_offsets[user + 1]), int(log.search_offsets[user + 1])
            return self._experiment.examples.contexts.context(user, *ends, query, None, None)
        made, examples = log_of(log, [history], words=self.reader.words_by_name)
        data = copy.copy(self.data)
        data.log = made
        settings = self._experiment.config.data
        contexts = UserContexts(settings, data, self._experiment.examples.name)
        ends = int(examples.rec_end[0]), int(examples.search_end[0])
        context = contexts.context(1, *ends, query, request.at, None)
        return dataclasses.replace(context, profile=log.profile(user) if settings.profiles else {})
