"""Trains a `Ranker` that answers searches alone: on searches, selected and tested on searches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import config_dict

from core import metrics
from core.errors import UserError
from core.settings import Count, Section
from core.workdir import Workdir
from input_pipelines import candidates
from input_pipelines.settings import EvaluationSettings
from lcrsr import search_evaluation
from lcrsr.ranker_experiment import RankerExperiment, check_loss
from lcrsr.search_baselines.experiment import SearchSettings

# Protocols of searches that early stopping may go by.
_SELECTING = (*candidates.PROTOCOLS, candidates.BM25, "full")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankedSearchSettings(SearchSettings):
    """Names the protocols of searches, and how many are scored at once."""

    full_batch_size: Count


class SearchRankerExperiment(RankerExperiment):
    """Trains a `Ranker` whose `tasks` are ('search',) by one stage, `train`."""

    tasks = ("search",)

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        evaluation = Section((EvaluationSettings, RankedSearchSettings))
        return {**super().sections(config), "eval": evaluation}

    @classmethod
    def check_settings(cls, config: config_dict.ConfigDict) -> None:
        super(RankerExperiment, cls).check_settings(config)
        check_loss(config, cls.ranker_of(config))
        if config.eval.selection not in [
            metrics.full_name(name, search_evaluation.columns(protocol)[0])
            for name in config.eval.metrics
            for protocol in _SELECTING
        ]:
            raise UserError(
                f"expected config.eval.selection to be one of eval.metrics against one of search/"
                f"{', search/'.join(_SELECTING)}, found {config.eval.selection!r}; for instance "
                "'ndcg@5/search/neg99'"
            )
        if not config.data.use_search:
            raise UserError(
                f"expected config.data.use_search=True, found False: {config.method} is a model of "
                "searches; set it"
            )
        for section, name, value in (
            ("mesh", "data", 1),
            ("mesh", "model", 1),
            ("train", "targets_per_window", 1),
            ("data", "item_words", 0),
        ):
            if config[section][name] != value:
                raise UserError(
                    f"expected config.{section}.{name}={value} of a model of searches alone, found "
                    f"{config[section][name]}; set it"
                )

    def columns(self, task: str, protocol: str) -> tuple[str, ...]:
        if task != "search":
            raise UserError(
                f"expected --task=search of a run of {self.config.method}, found {task!r}; pass it"
            )
        return search_evaluation.columns(protocol)

    def check_data(self) -> None:
        self._tested()
        self.data.examples("search", "validation")
        self.example_batch()
        batches, _ = self.training_batches(self.config.seed)
        next(batches(0))

    def _tested(self) -> tuple[str, ...]:
        """Returns the columns whose protocols rank at least one search of the test split."""
        wanted = self.config.eval.search_protocols
        possible = self.data.possible("test", wanted, "search")
        return tuple(self.columns("search", protocol)[0] for protocol in possible)

    def example_batch(self) -> dict[str, np.ndarray]:
        batch = next(self.data.full("validation"))[0]
        query = np.zeros((len(batch["user"]), batch["query_words"].shape[-1]), np.int32)
        return batch | {"query": query}

    @property
    def selection(self) -> str:  # type: ignore[override]
        """Names the metric that decides; see `input_pipelines.dataset.Dataset.selection`."""
        return self.data.selection("search")

    @property
    def _floors(self) -> dict[str, float]:  # type: ignore[override]
        return {}  # those of searches are methods of their own: configs/retrieval.py

    def test_protocols(
        self,
        workdir: Workdir,
        stage: str,
        step: int,
        params: Any,
        tables: Any,
        more: dict[str, Any] | None = None,
    ) -> None:
        self.test_once(workdir, stage, step, self._tested(), params, tables, more)

    def predict(
        self,
        params: Any,
        tables: Any,
        users: Sequence[str] | None,
        top_k: int,
        query: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        raise UserError(
            f"expected the run of a model that recommends, found one of {self.config.method}, "
            "which answers searches alone; ask it by lcrsr.Recommender or launch.serve"
        )
