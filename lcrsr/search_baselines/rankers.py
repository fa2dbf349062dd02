"""Ranks items for a query without training by gradients: floors of the search task.

`query_popularity` and `query_knn` know what training users clicked after the same query; `tfidf`
and `dense` compare the query with the items' texts, as BM25 does (`input_pipelines.bm25`), and are
the matching baselines of CRS's Table 2. Where these know nothing, items stand in the order of their
clicks after any query, below all that is known: for `query_popularity` and `query_knn` every item
that they score 0, for texts all items of a query that shares no word with any. Axis letters: B
queries, L clicks of a history, V items; a query is the tuple of its words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import scipy.sparse

from core.errors import UserError
from lcrsr.baselines.fitted import below_zero
from lcrsr.baselines.item_knn import ItemKNN

Query = tuple[str, ...]
# Queries whose vectors are remembered.
_MOST_QUERIES = 50_000


class SearchScorer(Protocol):
    def scores(self, queries: Sequence[Query], histories: np.ndarray) -> np.ndarray:
        """Scores of all items, float32 [B, V+1]; column 0 is padding.

        Args:
          queries: B of them.
          histories: int32 [B, L], items that the users clicked before, right-padded with 0.
        """
        ...


class QueryPopularity:
    """Ranks by how often training users clicked an item after the query.

    Items that nobody clicked after it, all of them where none searched it, are ranked below 0 by
    how often they were clicked after any query.

    Args:
      queries, items: int32 [E] of the items, the query and the item of every training click.
      num_items: V.
    """

    def __init__(self, queries: Sequence[Query], items: np.ndarray, num_items: int):
        self._rows = {query: row for row, query in enumerate(dict.fromkeys(queries))}
        rows = np.array([self._rows[query] for query in queries], np.int64)
        shape = (len(self._rows) + 1, num_items + 1)  # the last row stays empty: unknown queries
        self._counts = scipy.sparse.csr_array((np.ones(len(items)), (rows, items)), shape=shape)
        self.fallback = below_zero(np.asarray(self._counts.sum(0)).ravel())

    def scores(self, queries: Sequence[Query], histories: np.ndarray) -> np.ndarray:
        del histories
        counts = self.counts(queries)
        return np.where(counts > 0, counts, self.fallback)

    def counts(self, queries: Sequence[Query]) -> np.ndarray:
        """Counts the clicks after each query, float32 [B, V+1]; 0 for one that none searched."""
        rows = [self._rows.get(query, len(self._rows)) for query in queries]
        return self._counts[rows].toarray().astype(np.float32)


class QueryKNN:
    """Ranks items clicked after the query before all others, by their nearness to the history.

    An item that training users clicked after the query scores 1 + weight * (its share of these
    clicks) + kNN, any other kNN / (1 + kNN), which is below 1; kNN is the similarity of `ItemKNN`.
    What has neither is ranked below 0 by its clicks after any query.

    Args:
      weight: of the popularity, at least 0.
    """

    def __init__(self, popularity: QueryPopularity, neighbours: ItemKNN, weight: float):
        if weight < 0:
            raise ValueError(f"expected popularity_weight of at least 0, found {weight}")
        self._popularity, self._neighbours, self._weight = popularity, neighbours, weight

    def scores(self, queries: Sequence[Query], histories: np.ndarray) -> np.ndarray:
        counts = self._popularity.counts(queries)
        near = self._neighbours.similarities({"rec_items": histories})
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1.0)
        known = np.where(counts > 0, 1.0 + self._weight * share + near, near / (1.0 + near))
        return np.where(known > 0, known, self._popularity.fallback)


class OrPopular:
    """Ranks as another scorer does, and by clicks after any query where that one knows nothing.

    Args:
      scorer: of which a query that all items score alike has told it nothing.
      popularity: of the training searches.
    """

    def __init__(self, scorer: SearchScorer, popularity: QueryPopularity):
        self._scorer, self._popularity = scorer, popularity

    def scores(self, queries: Sequence[Query], histories: np.ndarray) -> np.ndarray:
        scores = self._scorer.scores(queries, histories)
        unknown = (scores[:, 1:] == scores[:, 1:2]).all(1, keepdims=True)
        return np.where(unknown, self._popularity.fallback, scores)


def check_texts(texts: Sequence[Sequence[str] | str]) -> None:
    """Raises UserError where no item has text, or a word."""
    if not any(texts):
        raise UserError(
            f"expected text on the items, found none on all {len(texts)}; bring titles, or "
            "use query_popularity"
        )


class TextSimilarity:
    """Scores by the cosine of a query's TF-IDF vector with the items', or of their singular vectors
    (LSA).

    Args:
      texts: of items 1..V.
      split: from a text to its words, as queries were split.
      width: of the singular vectors (Deerwester et al. 1990); None compares the TF-IDF vectors.
      seed: of the randomised decomposition.

    Raises:
      UserError: no item has text.
    """

    def __init__(
        self,
        texts: Sequence[str],
        split: Callable[[str], list[str]],
        *,
        width: int | None,
        seed: int,
    ):
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        words = [split(text) for text in texts]
        check_texts(words)
        self._weights = TfidfVectorizer(analyzer=lambda words: words, sublinear_tf=True)
        vectors = self._weights.fit_transform(words)
        self._svd = None
        if width is not None:
            width = min(width, min(vectors.shape) - 1)
            self._svd = TruncatedSVD(width, random_state=seed).fit(vectors)
        self._items = self._embed(vectors)

    def _embed(self, vectors: scipy.sparse.csr_array) -> np.ndarray | scipy.sparse.csr_array:
        if self._svd is None:
            return vectors  # of length 1 already
        dense = self._svd.transform(vectors)
        return dense / np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-12)

    def scores(self, queries: Sequence[Query], histories: np.ndarray) -> np.ndarray:
        del histories
        vectors = self._embed(self._weights.transform([list(query) for query in queries]))
        similar = vectors @ self._items.T
        dense = similar.toarray() if scipy.sparse.issparse(similar) else similar
        return np.pad(dense, ((0, 0), (1, 0))).astype(np.float32)


class VectorSimilarity:
    """Scores by the products of a query's vector with the items', exactly and in float32.

    Args:
      items: float32 [V, D].
      encode: from n queries to their vectors float32 [n, D].

    Attributes:
      items: as given.
    """

    def __init__(self, items: np.ndarray, encode: Callable[[Sequence[Query]], np.ndarray]):
        self.items, self._encode = items, encode
        self._encoded: dict[Query, np.ndarray] = {}

    def vectors(self, queries: Sequence[Query]) -> np.ndarray:
        """Returns the vectors float32 [B, D] of queries, each of which is encoded once."""
        if len(self._encoded) > _MOST_QUERIES:
            self._encoded.clear()
        new = [query for query in dict.fromkeys(queries) if query not in self._encoded]
        if new:
            self._encoded.update(zip(new, self._encode(new), strict=True))
        return np.stack([self._encoded[query] for query in queries])

    def scores(self, queries: Sequence[Query], histories: np.ndarray) -> np.ndarray:
        del histories
        return np.pad(self.vectors(queries) @ self.items.T, ((0, 0), (1, 0)))


class ByQuery:
    """Scores by any function of the query alone, asked once for each different query of a batch.

    Args:
      score: from the words of a query to float32 [V].
    """

    def __init__(self, score: Callable[[Sequence[str]], np.ndarray]):
        self._score = score

    def scores(self, queries: Sequence[Query], histories: np.ndarray) -> np.ndarray:
        del histories
        of_query = {query: self._score(query) for query in set(queries)}
        return np.pad(np.stack([of_query[q] for q in queries]), ((0, 0), (1, 0))).astype(np.float32)
