"""Measures what scores the whole catalogue for searches: floors of search, and joint rankers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from core import metrics
from core.errors import UserError
from input_pipelines import candidates, search_protocol, search_task
from input_pipelines.dataset import WHOLE, Dataset
from input_pipelines.search_task import SearchExamples

_PREFIX = "search/"
_SHOWN = search_protocol.IMPRESSIONS.removeprefix(_PREFIX)
PROTOCOLS = (*WHOLE, *candidates.PROTOCOLS, candidates.BM25, _SHOWN)


def columns(protocol: str) -> tuple[str, ...]:
    """Names the row of results.json that a protocol gives: 'search/full', for instance.

    Raises:
      UserError: no such protocol.
    """
    if protocol not in PROTOCOLS:
        raise UserError(
            f"expected a protocol of {', '.join(PROTOCOLS)} for search, found {protocol!r}; pass "
            "one of them"
        )
    return (f"{_PREFIX}{protocol}",)


class SearchEvaluation:
    """Measures the searches of a split.

    Args:
      data: of a run.
      split: 'validation' or 'test'.
      most: examples at most, 0 for all; see `Dataset.chosen`.

    Attributes:
      examples: the searches, one for each clicked item.

    Raises:
      UserError: the split has no searches.
    """

    def __init__(self, data: Dataset, split: str, most: int = 0):
        self._data, self._split = data, split
        examples, self._places = data.chosen("search", split, most)
        assert isinstance(examples, SearchExamples)
        self.examples = examples

    def counted(self, column: str) -> np.ndarray:
        """Tells which of the examples a column ranks, bool [E]."""
        if column == search_protocol.IMPRESSIONS:
            return search_protocol.counted(self._data.log, self.examples, column)
        name = column.removeprefix(_PREFIX)
        return self._data.counted(self._split, name, "search")[self._places]

    def rankings(self, column: str) -> np.ndarray | None:
        """Numbers the searches of the examples, int [E]; None where each ranks items of its own.

        The clicks of a search are relevant items of one ranking, where all of them are in it.
        """
        return self.examples.target_row if column.removeprefix(_PREFIX) in WHOLE else None

    def measure(
        self,
        column: str,
        names: Sequence[str],
        scores_of: Callable[[np.ndarray], np.ndarray],
        size: int,
    ) -> metrics.Sums:
        """Measures a column of `columns`.

        Args:
          names: of metrics.
          scores_of: the scores float32 [n, V+1] of some rows of `examples`.
          size: rows at once.

        Raises:
          UserError: the column ranks no example.
        """
        data, examples, name = self._data, self.examples, column.removeprefix(_PREFIX)
        target, _ = search_task.targets(data.log, examples)
        if name == "full":
            left_out = candidates.seen_items(data.log, examples)
        elif name == "catalogue":
            left_out = candidates.other_clicks(data.log, examples)
        elif name == _SHOWN:
            lists = search_protocol.impressions(data.log, examples)
        else:
            lists = data.candidate_lists(self._split, name, "search")[self._places]
            data.check_ranked(self._split, name, "search")
        counted = self.counted(column)
        sums = metrics.Sums(tuple(names))
        for start in range(0, len(examples), size):
            rows = np.arange(start, min(start + size, len(examples)))
            scores = np.array(scores_of(rows))
            if name in WHOLE:
                own = np.take_along_axis(scores, target[rows, None], 1)
                scores[:, 0] = -np.inf
                np.put_along_axis(scores, left_out[rows], -np.inf, 1)
                np.put_along_axis(scores, target[rows, None], -np.inf, 1)
                scores = np.concatenate([own, scores], 1)
            else:
                scores = np.take_along_axis(scores, lists[rows], 1)
            if name == _SHOWN:
                search_protocol.add_impressions(sums, scores, lists[rows])
                continue
            above, tied = map(np.asarray, metrics.target_ranks(scores, 0))
            sums.add(above, tied, counted[rows], np.isnan(scores).any(-1))
        return sums
