"""Answers searches with a floor of search: BM25, texts alike, or clicks after the query.

Texts' vectors are compared with every item's, exactly, up to a million items. In a larger catalogue
an index finds the nearest, which alone are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.errors import UserError
from experiments.restored import Restored
from lcrsr.search_baselines.experiment import SearchBaselineExperiment
from serving.answering import Answering
from serving.asking import each_kind
from serving.histories import History, HistoryReader, title_of
from serving.index import FIRST, VectorIndex
from serving.requests import Answer, Request

# Requests scored at once.
_MOST = 64
# Items that are all compared with a query's vector.
EXACT = 1_000_000


class SearchFloorAnswers(Answering):
    """Answers searches with a run of `lcrsr.search_baselines`.

    Args:
      restored: as of `recommender.Recommender`.
      exact: items of the largest catalogue whose vectors are all compared with a query's.

    Raises:
      UserError: a larger catalogue, and usearch is not installed.

    Attributes:
      reader, max_steps: as of `ranking.RankerAnswers`.
      tasks: ('search',).
    """

    max_steps: int | None = None
    gives_probabilities = False
    tasks = ("search",)

    def __init__(self, restored: Restored, exact: int = EXACT):
        experiment = restored.experiment
        assert isinstance(experiment, SearchBaselineExperiment)
        self._experiment, self.data = experiment, experiment.data
        self.reader = HistoryReader(self.data)
        log, similarity = self.data.log, experiment.similarity
        self._index = None
        if similarity is not None and log.num_items > exact:
            self._index = VectorIndex(similarity.items)
        self.titles = {name: title_of(log, number) for name, number in self.reader.items.items()}

    def answer(self, requests: Sequence[Request]) -> list[Answer | UserError]:
        return each_kind(self._found, requests, _MOST)

    def _found(self, requests: Sequence[Request]) -> list[Answer | UserError]:
        histories = [self.reader.read(request) for request in requests]
        # Words of titles count too, which no training query has.
        queries = [tuple(self.data.query_words(request.query or "")) for request in requests]
        if self._index is None:
            every = self._experiment.scores(queries, self._clicked(histories))
            scored: list[tuple[np.ndarray, np.ndarray | None]] = [(row, None) for row in every]
        else:
            scored = [
                self._nearest(self._index, request, history, query)
                for request, history, query in zip(requests, histories, queries, strict=True)
            ]
        return [
            self.answered(request, history, scores, self, numbers)
            if query
            else UserError(
                f"expected a query with words, found {str(request.query)[:40]!r}; rephrase it"
            )
            for request, history, query, (scores, numbers) in zip(
                requests, histories, queries, scored, strict=True
            )
        ]

    def _nearest(
        self, index: VectorIndex, request: Request, history: History, query: tuple[str, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores the items near a query: (float32 [n+1], their numbers int [n+1]), the first 0."""
        similarity = self._experiment.similarity
        assert similarity is not None
        vector = similarity.vectors([query])[0]
        candidates, left_out, _ = self.reader.choice(request, history)
        numbers = candidates
        if numbers is None:
            most = min(max(FIRST, request.k) + len(left_out), len(similarity.items))
            numbers = index.find(vector[None], most)[0] + 1
            numbers = numbers[numbers > 0]
        scores = similarity.items[numbers - 1] @ vector
        return np.pad(scores, (1, 0)), np.pad(numbers, (1, 0))

    def _clicked(self, histories: Sequence[History]) -> np.ndarray:
        """Returns the last clicks of each history, int32 [n, L], right-padded."""
        items = np.zeros((len(histories), self._experiment.config.data.rec_length), np.int32)
        for row, history in enumerate(histories):
            last = [click.item for click in history.clicks][-items.shape[1] :]
            items[row, : len(last)] = last
        return items
