"""Answers searches with a floor of search: BM25, texts alike, or clicks after the query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.errors import UserError
from experiments.restored import Restored
from lcrsr.search_baselines.experiment import SearchBaselineExperiment
from serving.answering import Answering
from serving.asking import each_kind
from serving.histories import History, HistoryReader, title_of
from serving.requests import Answer, Request

# Requests scored at once.
_MOST = 64


class SearchFloorAnswers(Answering):
    """Answers searches with a run of `lcrsr.search_baselines`.

    Args:
      restored: as of `recommender.Recommender`.

    Attributes:
      reader, max_steps: as of `ranking.RankerAnswers`.
      tasks: ('search',).
    """

    max_steps: int | None = None
    gives_probabilities = False
    tasks = ("search",)

    def __init__(self, restored: Restored):
        experiment = restored.experiment
        assert isinstance(experiment, SearchBaselineExperiment)
        self._experiment, self.data = experiment, experiment.data
        self.reader = HistoryReader(self.data)
        log = self.data.log
        self.titles = {name: title_of(log, number) for name, number in self.reader.items.items()}

    def answer(self, requests: Sequence[Request]) -> list[Answer | UserError]:
        return each_kind(self._found, requests, _MOST)

    def _found(self, requests: Sequence[Request]) -> list[Answer | UserError]:
        histories = [self.reader.read(request) for request in requests]
        # Words of titles count too, which no training query has.
        queries = [tuple(self.data.query_words(request.query or "")) for request in requests]
        scores = self._experiment.scores(queries, self._clicked(histories))
        return [
            self.answered(request, history, of_request, self)
            if query
            else UserError(
                f"expected a query with words, found {str(request.query)[:40]!r}; rephrase it"
            )
            for request, history, query, of_request in zip(
                requests, histories, queries, scores, strict=True
            )
        ]

    def _clicked(self, histories: Sequence[History]) -> np.ndarray:
        """Returns the last clicks of each history, int32 [n, L], right-padded."""
        items = np.zeros((len(histories), self._experiment.config.data.rec_length), np.int32)
        for row, history in enumerate(histories):
            last = [click.item for click in history.clicks][-items.shape[1] :]
            items[row, : len(last)] = last
        return items
