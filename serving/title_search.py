"""Finds items by the words of their titles, to compose a history with; no model is asked."""

from __future__ import annotations

import bisect
import collections
import math
from collections.abc import Mapping

import numpy as np

from input_pipelines import segmenters

# Words of the vocabulary that the beginning of a word may stand for.
_MOST_ENDINGS = 64


class TitleSearch:
    """Holds which words stand in which titles.

    Args:
      titles: by item id; '' where there is none.
    """

    def __init__(self, titles: Mapping[str, str]):
        self._titles, self._ids = titles, list(titles)
        places: dict[str, list[int]] = collections.defaultdict(list)
        lengths = np.ones(len(self._ids), np.float32)
        for number, title in enumerate(titles.values()):
            words = set(segmenters.characters(title))
            lengths[number] += len(words)
            for word in words:
                places[word].append(number)
        self._lengths = lengths
        self._places = {word: np.array(items, np.int32) for word, items in places.items()}
        self._vocabulary = sorted(places)

    def find(self, query: str, most: int) -> list[str]:
        """Returns the ids of the titles that hold most of a query's words, rare ones before others.

        The last word may be the beginning of one. A query that is an id finds that item first. A
        query without words finds items evenly spread over the catalogue.
        """
        words = segmenters.characters(query)
        if not words:
            step = max(1, len(self._ids) // max(1, most))
            return self._ids[::step][:most]
        scores = np.zeros(len(self._ids), np.float32)
        for number, word in enumerate(words):
            self._add(scores, word, begins=number == len(words) - 1)
        (matching,) = np.nonzero(scores)
        # Of titles with the same words the shorter one is nearer to the query.
        values = scores[matching] - 1e-3 * np.minimum(self._lengths[matching], 100)
        best = matching[np.argsort(-values, kind="stable")[:most]]
        found = [self._ids[number] for number in best]
        if (own := query.strip()) in self._titles:
            found = [own, *(item for item in found if item != own)][:most]
        return found

    def _add(self, scores: np.ndarray, word: str, *, begins: bool) -> None:
        """Adds a word's weight to the scores of the titles that hold it, or a longer one."""
        words = [word] if word in self._places else []
        if begins:
            first = bisect.bisect_left(self._vocabulary, word)
            endings = self._vocabulary[first : first + _MOST_ENDINGS]
            words += [other for other in endings if other.startswith(word) and other != word]
        holding = [self._places[each] for each in words]
        if not holding:
            return
        items = np.unique(np.concatenate(holding))
        weight = math.log1p(len(scores) / len(items))
        scores[items] += weight
        if word in self._places:
            scores[self._places[word]] += 0.5 * weight
