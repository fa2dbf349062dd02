"""Answers requests with GenSAR, which generates identifiers under a beam search.

One request is answered at a time. What is compiled depends on the length of the prompt, in steps of
32 tokens, and on the beam's width, in steps of `config.eval.beam`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from core.errors import UserError
from experiments.restored import Restored
from gensar_jax import prediction
from gensar_jax.experiment import GenSARExperiment
from serving.asking import each_alone
from serving.histories import HistoryReader, log_of, title_of
from serving.requests import Answer, Recommended, Request

_DIGITS = 6
# What a run has learnt of the mixture's tasks, by what that answers.
_LEARNT = {"recommendation": "nrip", "search": "nsip"}


class GeneratedAnswers:
    """Answers requests with a run of GenSAR; scores are log-likelihoods in nats.

    Args:
      restored: as of `recommender.Recommender`.

    Attributes:
      reader, max_steps: as of `ranking.RankerAnswers`.
      tasks: of 'recommendation' and 'search', what the run has learnt.
    """

    max_steps: int | None = None

    def __init__(self, restored: Restored):
        experiment = restored.experiment
        assert isinstance(experiment, GenSARExperiment)
        self._experiment, self._params = experiment, restored.params
        self.data = experiment.data
        self.reader = HistoryReader(self.data)
        learnt = experiment.examples.mixture.tasks
        self.tasks = tuple(task for task, name in _LEARNT.items() if name in learnt)

    def answer(self, requests: Sequence[Request]) -> list[Answer | UserError]:
        """Answers requests, each on its own."""
        return each_alone(self._answered, requests)

    def _answered(self, request: Request) -> Answer:
        if request.because:
            raise UserError(
                "expected because of a ranker's run, found a run of gensar, whose scores are no "
                "sums of events; leave it out"
            )
        experiment, log = self._experiment, self.data.log
        history = self.reader.read(request)
        made, examples = log_of(log, [history], words=self.reader.words_by_name)
        data = copy.copy(self.data)
        data.log = made
        task = "recommendation" if request.query is None else "search"
        trie, skipped = experiment.trie(task), history.skipped_items
        left_out = set(self.reader.known(request.exclude).tolist())
        if not request.keep_seen:
            left_out |= set(history.touched.tolist())
        if request.candidates is not None:
            candidates = np.unique(self.reader.known(request.candidates))
            skipped += len(request.candidates) - len(self.reader.known(request.candidates))
            if not len(candidates):
                return Answer(items=(), known_user=history.user > 0, skipped_items=skipped)
            trie = experiment.items_trie(task, candidates)
        (items,) = prediction.top_items(
            experiment.network,
            self._params,
            experiment.examples.of_log(made),
            trie,
            data,
            examples,
            request.k,
            request.query,
            beam=experiment.config.eval.beam,
            batch_size=1,
            length_penalty=experiment.length_penalty,
            left_out=[left_out],
        )
        return Answer(
            items=tuple(
                Recommended(
                    item=str(log.item_ids[item]),
                    title=title_of(log, item),
                    score=round(score, _DIGITS),
                )
                for item, score in items
            ),
            known_user=history.user > 0,
            skipped_items=skipped,
            skipped_events=history.skipped_events,
        )
