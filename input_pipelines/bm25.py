"""Finds the items whose text is nearest to a query by BM25 (Robertson and Zaragoza 2009)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from core.errors import UserError
from input_pipelines.log import tie_break

# Lucene's form with the library's own constants.
_METHOD, _K1, _B = "lucene", 1.5, 0.75


class ItemTextIndex:
    """Ranks items for a query by BM25 over the words of their texts.

    Args:
      texts: of items 1..V.
      split: from a text to its words, as queries were split.
      seed: of the order of equal scores.

    Raises:
      UserError: no item has text.
    """

    def __init__(self, texts: Sequence[str], split: Callable[[str], list[str]], seed: int):
        import bm25s

        words = [split(text) for text in texts]
        if not any(words):
            raise UserError(
                f"expected text on the items for bm25_99, found none on all {len(texts)}; bring "
                "titles, or use neg99"
            )
        self._index = bm25s.BM25(method=_METHOD, k1=_K1, b=_B)
        self._index.index(words, show_progress=False)
        self._known = set(self._index.vocab_dict)
        self._ties = tie_break([str(item) for item in range(1, len(texts) + 1)], seed)
        self.num_items = len(texts)

    def scores(self, words: Sequence[str]) -> np.ndarray:
        """Returns the scores of items 1..V, float32 [V]; 0 for a text with no word of the query."""
        known = [word for word in words if word in self._known]
        if not known:
            return np.zeros(self.num_items, np.float32)
        return np.asarray(self._index.get_scores(known), np.float32)

    def ranking(self, words: Sequence[str]) -> np.ndarray:
        """Returns items int32 [V], nearest first; the seed orders equal scores."""
        return (np.lexsort((self._ties, -self.scores(words))) + 1).astype(np.int32)


def nearest_negatives(
    index: ItemTextIndex,
    queries: Sequence[Sequence[str]],
    target: np.ndarray,
    left_out: Sequence[np.ndarray],
    count: int,
) -> np.ndarray:
    """Takes the `count` items nearest to each query, without the target and what is left out.

    Args:
      queries: E of them.
      target: [E].
      left_out: of each query the items that are no negatives: what its user has touched up to
        then, the other clicks of the same search among it.
      count: negatives a row.

    Returns:
      int32 [E, count]; a row of zeros where fewer than `count` items are left.
    """
    rankings: dict[tuple[str, ...], np.ndarray] = {}
    # This many of the nearest hold `count` that are not left out.
    most = count + 1 + max((len(out) for out in left_out), default=0)
    negatives = np.zeros((len(queries), count), np.int32)
    for row, (words, out) in enumerate(zip(queries, left_out, strict=True)):
        key = tuple(words)
        if key not in rankings:
            rankings[key] = index.ranking(words)[:most]
        nearest = rankings[key]
        nearest = nearest[(nearest != target[row]) & ~np.isin(nearest, out)][:count]
        if len(nearest) == count:
            negatives[row] = nearest
    return negatives
