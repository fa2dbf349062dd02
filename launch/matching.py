"""Matching baselines of CRS's Table 2, on the query alone: BM25, TF-IDF and dense vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
from ml_collections import config_dict

from core import metrics, vectors
from core.errors import UserError
from core.workdir import Workdir
from input_pipelines import segmenters
from input_pipelines.bm25 import ItemTextIndex
from launch import results, search_protocol
from launch.data import Data

SYSTEMS = ("bm25", "tfidf", "dense")
FACTORS = "tfidf_svd"
# A query's words -> scores float [V] of items 1..V.
Scorer = Callable[[Sequence[str]], np.ndarray]


def _tfidf(texts: Sequence[str], split: Callable[[str], list[str]], width: int | None) -> Scorer:
    """Cosine of TF-IDF rows (1 + log tf, smooth idf); of their first singular vectors by `width`,
    fitted on the items alone (LSA)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.utils.extmath import randomized_svd

    vectorizer = TfidfVectorizer(analyzer=lambda words: words, sublinear_tf=True)
    rows = vectorizer.fit_transform([split(text) for text in texts])
    if width is None:
        return lambda words: (rows @ vectorizer.transform([words]).T).toarray()[:, 0]
    left, values, right = randomized_svd(rows, min(width, *rows.shape), random_state=0)
    items = vectors.unit_rows(left * values)
    return lambda words: items @ vectors.unit_rows(vectorizer.transform([words]) @ right.T)[0]


def _sentences(texts: Sequence[str], name: str) -> Scorer:
    items = vectors.from_sentence_transformer(texts, name)
    return lambda words: (
        items @ vectors.from_sentence_transformer([segmenters.join(words)], name)[0]
    )


def scorer(config: config_dict.ConfigDict, texts: Sequence[str]) -> Scorer:
    """The scorer of `config.model.system` over the items' texts.

    Raises:
      UserError: no such system, or no item has text.
    """
    system, split = config.model.system, segmenters.segmenter(config.data.segmenter)
    if system not in SYSTEMS:
        raise UserError(
            f"expected config.model.system of {', '.join(SYSTEMS)}, found {system!r}; pass one"
        )
    if not any(split(text) for text in texts):
        raise UserError("expected text on the items, found none; bring a catalogue with titles")
    if system == "bm25":
        return ItemTextIndex(texts, split, seed=0).scores
    if system == "tfidf":
        return _tfidf(texts, split, None)
    if config.model.vectors == FACTORS:
        return _tfidf(texts, split, config.model.width)
    return _sentences(texts, config.model.vectors)


class MatchingExperiment:
    """One stage, `fit`; nothing is trained.

    Raises:
      UserError: as `scorer`, or a selection that does not fit.
    """

    stages: tuple[str, ...] = ("fit",)
    evaluator = None

    def __init__(self, config: config_dict.ConfigDict, data: Data):
        search_protocol.check(config)
        self.config, self.data = config, data
        self._score = scorer(config, data.log.item_texts())

    def evaluate(self, params: Any, tables: Any, split: str, protocol: str) -> metrics.Sums:
        """Exact ranks in the whole catalogue; items of equal scores come in random order."""
        del params, tables
        self.columns("search", protocol.removeprefix("search/"))
        examples = search_protocol.held_out(self.config, self.data, split)
        log = self.data.log
        scores: dict[tuple[str, ...], np.ndarray] = {}
        above, tied = np.zeros((2, len(examples)), np.int64)
        for row, (search, item) in enumerate(zip(examples.target_row, examples.item, strict=True)):
            words = tuple(log.query(int(search)))
            if words not in scores:
                scores[words] = self._score(words)
            own = scores[words][item - 1]
            above[row] = (scores[words] > own).sum()
            tied[row] = (scores[words] == own).sum() - 1
        sums = metrics.Sums(tuple(self.config.eval.metrics))
        sums.add(above, tied, np.ones(len(above)), np.zeros(len(above), bool))
        return sums

    def columns(self, task: str, protocol: str) -> tuple[str, ...]:
        return search_protocol.columns(task, protocol)

    def details(self, split: str, protocol: str) -> dict[str, Any]:
        """Further arguments of `results.save` for a row."""
        del protocol
        examples = search_protocol.held_out(self.config, self.data, split)
        more = {"task": "search", "system": self.config.model.system}
        return {"users": examples.user, "more": more}

    def run(self, workdir: Workdir) -> None:
        """Reads the test split once."""
        if workdir.read_results()["rows"]:
            return
        sums = self.evaluate(None, None, "test", search_protocol.PROTOCOL)
        details = self.details("test", search_protocol.PROTOCOL)
        examples = search_protocol.held_out(self.config, self.data, "test")
        details["more"]["user_groups"] = search_protocol.user_groups(self.data, examples, sums)
        results.save(
            workdir,
            sums,
            stage="fit",
            split="test",
            protocol=search_protocol.PROTOCOL,
            step=0,
            config=self.config,
            data=self.data,
            **details,
        )

    def abstract_state(self, stage: str) -> NoReturn:
        raise UserError(f"expected stage fit, found {stage!r}; nothing else is kept")
