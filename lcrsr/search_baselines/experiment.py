"""Runs a floor of the search task from a config: `config.model.kind` names a scorer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from ml_collections import config_dict

from core import metrics, results, vectors
from core.errors import UserError
from core.experiment import Experiment, WriterSettings
from core.settings import Count, Named, NamesOnce, Section, Settings, Weight, one_of
from core.workdir import Workdir
from input_pipelines import candidates, search_protocol, search_task, segmenters
from input_pipelines.bm25 import ItemTextIndex
from input_pipelines.dataset import WHOLE, Dataset
from input_pipelines.search_task import SearchExamples
from input_pipelines.settings import (
    EvaluationSettings,
    HistorySettings,
    UserSettings,
    sections_of_data,
)
from lcrsr.baselines import item_knn
from lcrsr.search_baselines.rankers import (
    ByQuery,
    OrPopular,
    Query,
    QueryKNN,
    QueryPopularity,
    SearchScorer,
    TextSimilarity,
)

KINDS = ("bm25", "tfidf", "dense", "query_popularity", "query_knn")
FACTORS = "tfidf_svd"
# What a kind reads beside the data.
_OF_KIND = {
    "dense": ("vectors", "width"),
    "query_knn": ("decay", "history_power", "popularity_weight"),
}
_PREFIX = "search/"
_SHOWN = search_protocol.IMPRESSIONS.removeprefix(_PREFIX)
PROTOCOLS = (*WHOLE, *candidates.PROTOCOLS, candidates.BM25, _SHOWN)


def _sentences(texts: Sequence[str], name: str) -> Callable[[Sequence[str]], np.ndarray]:
    """Cosines with a query's vector of a sentence-transformers model."""
    encode = vectors.sentence_encoder(name, key="model.vectors")
    items = encode(texts)
    return lambda words: items @ encode([segmenters.join(words)])[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KindSettings(Settings):
    """Says what is fitted; what one kind alone reads, the others do not have.

    Attributes:
      kind: of KINDS.
      vectors, width: of 'dense', singular vectors or a sentence-transformers model.
      decay, history_power, popularity_weight: of 'query_knn'.
    """

    kind: Annotated[str, one_of(*KINDS)]
    vectors: Named | None = None
    width: Count | None = None
    decay: Annotated[float, item_knn.DECAY] | None = None
    history_power: Weight | None = None
    popularity_weight: Weight | None = None

    def check(self) -> None:
        for name in _OF_KIND.get(self.kind, ()):
            if getattr(self, name) is None:
                raise ValueError(
                    f"expected {name} for kind {self.kind!r}, found none; pass the config of "
                    "that kind"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSettings(Settings):
    """Names the protocols of searches."""

    search_protocols: Annotated[tuple[Annotated[str, one_of(*PROTOCOLS)], ...], NamesOnce(least=1)]


class SearchBaselineExperiment(Experiment):
    """Fits a floor of search whenever it is opened, by training searches or items' texts.

    Args:
      config: a resolved config of method 'search_baseline'.
      data: the data it names.

    Raises:
      UserError: a setting that does not exist, or items without text.
    """

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
            "model": Section((KindSettings,)),
        }

    def __init__(self, config: config_dict.ConfigDict, data: Dataset):
        self.check_settings(config)
        self.config, self.data = config, data
        self._scorer = self._fitted(config.model)

    def _fitted(self, model: config_dict.ConfigDict) -> SearchScorer:
        log = self.data.log
        searches = search_task.training_searches(log, self.data.splits)
        popularity = QueryPopularity(self._queries(searches), searches.item, log.num_items)
        if model.kind in ("bm25", "tfidf", "dense"):
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
        return ByQuery(_sentences(texts, model.vectors))

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
        examples, _ = self._chosen("test")
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
        if protocol not in PROTOCOLS:
            raise UserError(
                f"expected a protocol of {', '.join(PROTOCOLS)} for search, found {protocol!r}; "
                "pass one of them"
            )
        return (f"{_PREFIX}{protocol}",)

    def details(self, split: str, protocol: str) -> dict[str, Any]:
        """Returns further arguments of `results.save` for a row."""
        examples, _ = self._chosen(split)
        more = {"task": "search", "kind": self.config.model.kind}
        return results.counting(
            examples.user, self._counted(split, protocol), more, self.config.eval.selection
        )

    def _counted(self, split: str, protocol: str) -> np.ndarray:
        """Tells which of the chosen examples a column ranks, bool [E]."""
        examples, places = self._chosen(split)
        if protocol == search_protocol.IMPRESSIONS:
            return search_protocol.counted(self.data.log, examples, protocol)
        return self.data.counted(split, protocol.removeprefix(_PREFIX), "search")[places]

    def _chosen(self, split: str) -> tuple[SearchExamples, np.ndarray]:
        searches, places = self.data.chosen("search", split, self.config.eval[f"{split}_users"])
        assert isinstance(searches, SearchExamples)
        return searches, places

    def evaluate(self, params: Any, tables: Any, split: str, protocol: str) -> metrics.Sums:
        """Measures one of `columns`; `params` and `tables` are not used."""
        del params, tables
        name = protocol.removeprefix(_PREFIX)
        self.columns("search", name)
        examples, places = self._chosen(split)
        queries, histories = self._queries(examples), self._histories(examples)
        target, _ = search_task.targets(self.data.log, examples)
        if name == "full":
            left_out = candidates.seen_items(self.data.log, examples)
        elif name == "catalogue":
            left_out = candidates.other_clicks(self.data.log, examples)
        elif name == _SHOWN:
            lists = search_protocol.impressions(self.data.log, examples)
        else:
            lists = self.data.candidate_lists(split, name, "search")[places]
            self.data.check_ranked(split, name, "search")
        counted = self._counted(split, protocol)
        sums = metrics.Sums(tuple(self.config.eval.metrics))
        size = self.config.eval.batch_size
        for start in range(0, len(examples), size):
            rows = slice(start, start + size)
            scores = self._scorer.scores(queries[rows], histories[rows])
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
