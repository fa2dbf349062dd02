"""Ranks the items that an index finds near a user, where a catalogue is too large to score whole.

A retrieval model (any exported ranker whose score is a dot product) gives every item a vector; an
index of them (usearch, HNSW) finds the items of the largest products with the user's vector, and
the ranker scores these alone. Its graph is made of products too (Morozov and Babenko, NeurIPS
2018): angles, which one further axis on the items gives (Bachrach et al., RecSys 2014), found 69%
of the first 20 of 50,000 vectors of LCR-SER where products found 99%. Up to half a million items,
comparing all is as fast, and exact.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.errors import UserError
from serving.exported import ExportedModel
from serving.histories import History
from serving.requests import RECOMMEND, Answer, Click, Request

# Items that are found and ranked.
FIRST = 500
# Items of the largest catalogue whose vectors are all compared with a user's.
EXACT = 500_000
# Of the graph: neighbours of a node, and nodes looked at while building and searching.
_CONNECTIVITY, _EXPANSION_ADD, _EXPANSION_SEARCH = 16, 128, 6144
_LONGEST_SAMPLE = 10
# Vectors that one thread adds: threads that begin a graph together can leave nodes unreachable.
_BEGIN = 1024


class ExactIndex:
    """Finds the vectors of the largest dot products with another by comparing all.

    Args:
      vectors: float32 [V, D].
    """

    def __init__(self, vectors: np.ndarray):
        self._vectors = np.ascontiguousarray(vectors, np.float32)

    def find(self, vectors: np.ndarray, most: int) -> np.ndarray:
        """Returns the places of the nearest items, as of `VectorIndex.find`."""
        count = min(most, len(self._vectors))
        found = np.full((len(vectors), most), -1, np.int64)
        for row, vector in enumerate(np.asarray(vectors, np.float32)):
            products = self._vectors @ vector
            nearest = np.argpartition(-products, count - 1)[:count] if count else found[row, :0]
            found[row, :count] = nearest[np.argsort(-products[nearest], kind="stable")]
        return found


class VectorIndex:
    """Finds the vectors of the largest dot products with another.

    Args:
      vectors: float32 [V, D].

    Raises:
      UserError: usearch is not installed.
    """

    def __init__(self, vectors: np.ndarray):
        try:
            from usearch.index import Index
        except ImportError:
            raise UserError(
                "expected the package usearch for an index, found none; run "
                "`pip install -e '.[serve]'`"
            ) from None
        vectors = np.ascontiguousarray(vectors, np.float32)
        self._index = Index(
            ndim=vectors.shape[1],
            metric="ip",
            dtype="f32",
            connectivity=_CONNECTIVITY,
            expansion_add=_EXPANSION_ADD,
            expansion_search=_EXPANSION_SEARCH,
        )
        keys = np.arange(len(vectors))
        self._index.add(keys[:_BEGIN], vectors[:_BEGIN], threads=1)
        if len(vectors) > _BEGIN:
            self._index.add(keys[_BEGIN:], vectors[_BEGIN:])

    def find(self, vectors: np.ndarray, most: int) -> np.ndarray:
        """Returns the places int64 [n, most] of the nearest items, -1 where there are fewer.

        Args:
          vectors: float32 [n, D].
        """
        found = np.full((len(vectors), most), -1, np.int64)
        for row, vector in enumerate(np.asarray(vectors, np.float32)):
            keys = self._index.search(vector, most).keys
            found[row, : len(keys)] = keys
        return found


@dataclasses.dataclass(frozen=True)
class Recall:
    """Says how much of an exact ranking the index gives.

    Attributes:
      retrieved: of the items of the largest products, those that the index finds.
      ranked: of the ranker's own first 20 of the whole catalogue, those among the first 20 here.
    """

    retrieved: float
    ranked: float


class _Found:
    """Scores the items that were found for one history: a `because.Scorer` whose items are places
    among them.

    Args:
      items: numbers int32 [N], 0 for padding.
    """

    def __init__(self, ranker: ExportedModel, items: np.ndarray):
        self._ranker, self._items = ranker, items
        self.data, self.max_steps = ranker.data, ranker.max_steps

    def scores(
        self, histories: Sequence[History], steps: Sequence[int | None] | None = None
    ) -> np.ndarray:
        items = np.broadcast_to(self._items, (len(histories), len(self._items)))
        return with_padding(self._ranker.scores_among(histories, items, steps))

    def scores_of_every_k(self, history: History) -> np.ndarray:
        steps = list(range((self.max_steps or 0) + 1))
        return self.scores([history] * len(steps), steps)


def with_padding(scores: np.ndarray) -> np.ndarray:
    """Returns scores [n, N] with a first column of padding, [n, N+1]."""
    return np.pad(scores, ((0, 0), (1, 0)), constant_values=-np.inf)


class IndexedModel(ExportedModel):
    """Answers requests with a ranker over what an index finds: `requests.Answers`.

    Ranks in its reasons count among the items that were found.

    Args:
      ranker: folder of an export.
      retriever: folder of an export whose scores are dot products, of the same items.
      first: items that are found and ranked, the most that an answer can have.
      items: that joined after training, as of `ExportedModel`, of both.
      exact: items of the largest catalogue whose vectors are all compared with a user's; a larger
        one has a `VectorIndex`.

    Raises:
      UserError: one of them cannot be opened, the retriever scores in another way, or they have
        other items.
    """

    def __init__(
        self,
        ranker: str,
        retriever: str,
        first: int = FIRST,
        items: Sequence[Any] | None = None,
        exact: int = EXACT,
    ):
        super().__init__(ranker, items)
        alone = os.path.realpath(ranker) == os.path.realpath(retriever)
        self._retriever: ExportedModel = self if alone else ExportedModel(retriever, items)
        if not self._retriever.manifest["dot_product"]:
            raise UserError(
                f"expected a retrieval model whose score is a dot product, such as sasrec, found "
                f"{self._retriever.name} in {retriever}; export another"
            )
        if self._retriever.data.log.item_ids != self.data.log.item_ids:
            raise UserError(
                f"expected two exports of the same items, found {self.name} and "
                f"{self._retriever.name}; train and export both on one data set"
            )
        self.first = self.catalogue_size = min(first, self.catalogue_size)
        vectors = self._retriever.vectors
        self._index = (ExactIndex if len(vectors) <= exact else VectorIndex)(vectors)
        # The index finds what a history asks for, not what a query does.
        self.tasks = (RECOMMEND,)
        self.name = f"{self.name}, the first {self.first} of {self._retriever.name}"

    def answer(self, requests: Sequence[Request]) -> list[Answer | UserError]:
        if not requests:
            return []
        histories = [self.reader.read(request) for request in requests]
        items = self._items(requests, histories)
        steps = [request.reasoning_steps for request in requests]
        scores = with_padding(self.scores_among(histories, items, steps))
        return [
            self.answered(
                request, history, of_request, _Found(self, found), np.concatenate([[0], found])
            )
            for request, history, of_request, found in zip(
                requests, histories, scores, items, strict=True
            )
        ]

    def _items(self, requests: Sequence[Request], histories: Sequence[History]) -> np.ndarray:
        """Returns the numbers of the items to rank, int32 [n, N], 0 for padding.

        The index is asked for as many more as the user has touched or leaves out.
        """
        vectors = self._vectors(requests)
        every = []
        for request, history, vector in zip(requests, histories, vectors, strict=True):
            if request.candidates is not None:
                every.append(np.unique(self.reader.known(request.candidates)))
                continue
            gone = self.reader.known(request.exclude)
            if not request.keep_seen:
                gone = np.union1d(gone, history.touched)
            most = min(self.first + len(gone), len(self._retriever.vectors))
            found = self._index.find(vector[None], most)[0] + 1
            found = found[(found > 0) & ~np.isin(found, gone)]
            every.append(found[: self.first])
        width = self.first
        while width < max(map(len, every)):
            width *= 2  # few widths, since each is compiled
        items = np.zeros((len(every), width), np.int32)
        for row, found in enumerate(every):
            items[row, : len(found)] = found
        return items

    def _vectors(self, requests: Sequence[Request]) -> np.ndarray:
        reader = self._retriever.reader
        return self._retriever.user_vectors([reader.read(request) for request in requests])

    def recall(self, count: int = 32, k: int = 20, seed: int = 0) -> Recall:
        """Measures the index against exact rankings, for made-up histories of random items."""
        rng = np.random.default_rng(seed)
        ids = self.data.log.item_ids
        requests = [
            Request(
                clicks=tuple(
                    Click(ids[number])
                    for number in rng.integers(1, len(ids), rng.integers(1, _LONGEST_SAMPLE + 1))
                ),
                k=min(k, self.first),
                keep_seen=True,
            )
            for _ in range(count)
        ]
        vectors = self._vectors(requests)
        exact = [
            np.argpartition(-(self._retriever.vectors @ vector), self.first - 1)[: self.first]
            for vector in vectors
        ]
        found = self._index.find(vectors, self.first)
        retrieved = [len(np.intersect1d(*pair)) / self.first for pair in zip(exact, found)]
        answers = [self.answer([request])[0] for request in requests]
        whole = [super(IndexedModel, self).answer([request])[0] for request in requests]
        ranked = [
            len({item.item for item in one.items} & {item.item for item in other.items})
            / len(other.items)
            for one, other in zip(answers, whole, strict=True)
            if isinstance(one, Answer) and isinstance(other, Answer)
        ]
        return Recall(float(np.mean(retrieved)), float(np.mean(ranked)))
