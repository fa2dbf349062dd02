"""Runs a floor of the search task from a config: `config.model.kind` names a scorer."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from ml_collections import config_dict

from core import checksums, metrics, results, vectors
from core.errors import UserError
from core.experiment import Experiment, WriterSettings
from core.files import load_npy, write_npy
from core.settings import Count, Named, NamesOnce, Section, Settings, Weight, build, one_of
from core.workdir import Workdir
from input_pipelines import search_protocol, search_task, segmenters
from input_pipelines.bm25 import ItemTextIndex
from input_pipelines.dataset import Dataset
from input_pipelines.search_task import SearchExamples
from input_pipelines.settings import (
    EvaluationSettings,
    HistorySettings,
    UserSettings,
    sections_of_data,
)
from lcrsr import search_evaluation
from lcrsr.baselines import item_knn
from lcrsr.search_baselines.rankers import (
    ByQuery,
    OrPopular,
    Query,
    QueryKNN,
    QueryPopularity,
    SearchScorer,
    TextSimilarity,
    VectorSimilarity,
    check_texts,
)
from lcrsr.search_evaluation import SearchEvaluation
from text_encoders import named
from text_encoders.sentence_settings import EncoderSettings

KINDS = ("bm25", "tfidf", "dense", "query_popularity", "query_knn")
# Of these, what compares a query with the items' texts.
TEXT_KINDS = ("bm25", "tfidf", "dense")
FACTORS = "tfidf_svd"
# What a kind reads beside the data.
_OF_KIND = {
    "dense": ("vectors",),
    "query_knn": ("decay", "history_power", "popularity_weight"),
}
_PREFIX = "search/"
# Counts what changes the vectors of equal texts by equal checkpoints, which are stored.
_VECTORS_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class KindSettings(Settings):
    """Says what is fitted; what one kind alone reads, the others do not have.

    Attributes:
      kind: of KINDS.
      vectors: of 'dense', singular vectors or a text encoder, as `open_encoder` takes it.
      width: of singular vectors.
      decay, history_power, popularity_weight: of 'query_knn'.
    """

    kind: Annotated[str, one_of(*KINDS)]
    vectors: Named | None = None
    width: Count | None = None
    decay: Annotated[float, item_knn.DECAY] | None = None
    history_power: Weight | None = None
    popularity_weight: Weight | None = None

    def check(self) -> None:
        width = ("width",) if self.kind == "dense" and self.vectors == FACTORS else ()
        for name in (*_OF_KIND.get(self.kind, ()), *width):
            if getattr(self, name) is None:
                raise ValueError(
                    f"expected {name} for kind {self.kind!r}, found none; pass the config of "
                    "that kind"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSettings(Settings):
    """Names the protocols of searches."""

    search_protocols: Annotated[
        tuple[Annotated[str, one_of(*search_evaluation.PROTOCOLS)], ...], NamesOnce(least=1)
    ]


class SearchBaselineExperiment(Experiment):
    """Fits a floor of search whenever it is opened, by training searches or items' texts.

    Args:
      config: a resolved config of method 'search_baseline'.
      data: the data it names.

    Raises:
      UserError: a setting that does not exist, or items without text.

    Attributes:
      open_encoder: opens a text encoder.
      similarity: of the kind 'dense' by a text encoder, None of others.
    """

    open_encoder: named.OpenEncoder = staticmethod(named.open_named)
    similarity: VectorSimilarity | None = None
    stages: tuple[str, ...] = ("fit",)
    tasks = ("search",)
    data: Dataset

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        return {
            **super().sections(config),
            **sections_of_data(config, HistorySettings),
            "eval": Section((EvaluationSettings, SearchSettings, UserSettings)),
            "loop": Section((WriterSettings,)),
            "model": Section((KindSettings, EncoderSettings)),
        }

    def __init__(self, config: config_dict.ConfigDict, data: Dataset):
        self.check_settings(config)
        self.config, self.data = config, data
        self._scorer = self._fitted(config.model)

    def _fitted(self, model: config_dict.ConfigDict) -> SearchScorer:
        log = self.data.log
        searches = search_task.training_searches(log, self.data.splits)
        popularity = QueryPopularity(self._queries(searches), searches.item, log.num_items)
        if model.kind in TEXT_KINDS:
            return OrPopular(self._by_text(model), popularity)
        if model.kind == "query_popularity":
            return popularity
        settings = item_knn.Settings(decay=model.decay, history_power=model.history_power)
        neighbours = item_knn.fit(settings, self.data.training_clicks())
        return QueryKNN(popularity, neighbours, model.popularity_weight)

    def _by_text(self, model: config_dict.ConfigDict) -> SearchScorer:
        texts, seed = self.data.log.item_texts(), self.config.seed
        split = segmenters.segmenter(self.config.data.segmenter)
        if model.kind == "bm25":
            return ByQuery(ItemTextIndex(texts, split, seed).scores)
        if model.kind == "tfidf":
            return TextSimilarity(texts, split, width=None, seed=seed)
        if model.vectors == FACTORS:
            return TextSimilarity(texts, split, width=model.width, seed=seed)
        check_texts([text.strip() for text in texts])
        settings = build(EncoderSettings, model.to_dict(), section="model")
        encoder = self.open_encoder(model.vectors, settings, key="model.vectors")
        self.similarity = VectorSimilarity(
            self._item_vectors(encoder, settings, texts),
            lambda queries: encoder.queries([segmenters.join(words) for words in queries]),
        )
        return self.similarity

    def _item_vectors(
        self, encoder: named.Encoder, settings: EncoderSettings, texts: Sequence[str]
    ) -> np.ndarray:
        """Makes the items' vectors float32 [V, D] once, and stores them beside the prepared data.

        Those of a model that is known by its name alone are made anew each time.
        """
        source = vectors.source_hash(encoder.source)
        if not source:
            return encoder.documents(texts)
        # The texts themselves: items may have joined the log since.
        content = [_VECTORS_VERSION, source, dataclasses.asdict(settings), *texts]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
        path = self.data.beside(f"text-vectors-{digest}.npy")
        remedy = f"delete {path}: it is made again"
        if not (checksums.is_saved(path) and os.path.exists(path)):
            array, file = encoder.documents(texts), io.BytesIO()
            write_npy(file, array)
            # A run that is served may lie where nothing can be written.
            if os.access(os.path.dirname(path), os.W_OK):
                checksums.save(path, file.getvalue())
            return array
        checksums.verify(path, remedy)
        return load_npy(path, "vectors of the items' texts", remedy)

    def scores(self, queries: Sequence[Query], histories: np.ndarray) -> np.ndarray:
        """Scores every item, as `lcrsr.search_baselines.rankers.SearchScorer`."""
        return self._scorer.scores(queries, histories)

    def _queries(self, examples: SearchExamples) -> list[Query]:
        return [tuple(self.data.log.query(int(row))) for row in examples.target_row]

    def _histories(self, examples: SearchExamples) -> np.ndarray:
        """Returns the last clicks before each example, int32 [E, L], right-padded."""
        log, length = self.data.log, self.config.data.rec_length
        first = np.maximum(log.rec_offsets[examples.user], examples.rec_end - length)
        places = first[:, None] + np.arange(length)
        valid = places < examples.rec_end[:, None]
        return np.where(valid, np.asarray(log.rec_items)[np.where(valid, places, 0)], 0)

    def check_data(self) -> None:
        """Raises UserError where the test split has no searches, or none that can be ranked."""
        self._chosen("test")
        self._tested()

    def _tested(self) -> tuple[str, ...]:
        """Returns the protocols that rank at least one example of the test split."""
        wanted = self.config.eval.search_protocols
        return self.data.possible("test", wanted, "search")

    def run(self, workdir: Workdir) -> None:
        columns = [self.columns("search", protocol)[0] for protocol in self._tested()]
        self.test_once(workdir, "fit", 0, columns, None, None)

    def groups(self, protocol: str, sums: metrics.Sums) -> dict[str, Any]:
        if protocol != search_protocol.PROTOCOL:
            return {}
        examples = self._chosen("test").examples
        return {"user_groups": search_protocol.user_groups(self.data, examples, sums)}

    def columns(self, task: str, protocol: str) -> tuple[str, ...]:
        """Names the row of results.json that a protocol gives: 'search/full', for instance.

        Raises:
          UserError: another task than search, or no such protocol.
        """
        if task != "search":
            raise UserError(
                f"expected --task=search of a run of {self.config.model.kind}, found {task!r}; "
                "pass it"
            )
        return search_evaluation.columns(protocol)

    def details(self, split: str, protocol: str) -> dict[str, Any]:
        """Returns further arguments of `results.save` for a row."""
        chosen = self._chosen(split)
        more = {"task": "search", "kind": self.config.model.kind}
        return results.counting(
            chosen.examples.user,
            chosen.counted(protocol),
            more,
            self.config.eval.selection,
            chosen.rankings(protocol),
        )

    def _chosen(self, split: str) -> SearchEvaluation:
        return SearchEvaluation(self.data, split, self.config.eval[f"{split}_users"])

    def evaluate(self, params: Any, tables: Any, split: str, protocol: str) -> metrics.Sums:
        """Measures one of `columns`; `params` and `tables` are not used."""
        del params, tables
        self.columns("search", protocol.removeprefix(_PREFIX))
        evaluation = self._chosen(split)
        queries = self._queries(evaluation.examples)
        histories = self._histories(evaluation.examples)

        def scores_of(rows: np.ndarray) -> np.ndarray:
            return self._scorer.scores([queries[row] for row in rows], histories[rows])

        return evaluation.measure(
            protocol, self.config.eval.metrics, scores_of, self.config.eval.batch_size
        )
