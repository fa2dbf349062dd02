"""Opens a baseline from a config: any module of `lcrsr.baselines`, named by `config.method`.

A module that trains by gradients has `Settings` and `ranker(settings) -> Ranker`; one that is
fitted at once has `Settings`, `fit(settings, clicks)` and `restored(settings, arrays)`; one of
searches alone has `search_ranker(settings)`; one with a stage of reinforcement learning also has
`ReinforceSettings` and `policy_task(ranker, settings, **of_policy)`. Adding one touches its own
file and its config.
"""

from __future__ import annotations

import importlib.util
import pkgutil
from typing import Any

import numpy as np
from ml_collections import config_dict

import lcrsr.baselines
from core import metrics
from core.best_items import best_unseen
from core.errors import UserError
from core.experiment import Experiment, WriterSettings
from core.settings import Section, build
from core.workdir import Workdir
from input_pipelines.dataset import Dataset
from input_pipelines.kept_data import KeptData
from input_pipelines.settings import HistorySettings
from lcrsr.baselines.fitted import FittedEvaluator
from lcrsr.ranker import Ranker
from lcrsr.ranker_experiment import RankerExperiment, RecommendationExperiment
from lcrsr.reinforce import PolicyTask
from lcrsr.reinforced_experiment import ReinforcedExperiment
from lcrsr.search_ranker_experiment import SearchRankerExperiment
from lcrsr.settings import StageSettings

_SHARED = ("contrast", "fitted", "product_search", "sequence", "two_histories")


def names() -> list[str]:
    """Returns the names of the baselines, sorted."""
    modules = (module.name for module in pkgutil.iter_modules(lcrsr.baselines.__path__))
    return sorted(set(modules) - set(_SHARED))


def _module(config: config_dict.ConfigDict) -> Any:
    """Returns the module of a config's baseline. Raises UserError where there is none."""
    method = config.get("method")
    if method not in names():
        raise UserError(
            f"expected config.method lcr_ser or a baseline ({', '.join(names())}), found "
            f"{str(method)!r:.60}; correct it"
        )
    return importlib.import_module(f"lcrsr.baselines.{method}")


def _lengths(config: config_dict.ConfigDict) -> dict[str, int]:
    return {name: config.data[name] for name in ("rec_length", "search_length")}


def _settings(config: config_dict.ConfigDict) -> Any:
    values, more = config.model.to_dict(), _lengths(config)
    return build(_module(config).Settings, values, section="model", more=more)


class FittedExperiment(RecommendationExperiment):
    """Fits a baseline without training whenever it is opened, from the training clicks."""

    stages: tuple[str, ...] = ("fit",)
    batch_settings = HistorySettings

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        return {
            **super().sections(config),
            "loop": Section((WriterSettings,)),
            "model": Section((_module(config).Settings,), _lengths),
        }

    def __init__(self, config: config_dict.ConfigDict, data: Dataset):
        self.check_settings(config)
        self.config, self.data = config, data
        module, settings = _module(config), _settings(config)
        if isinstance(data, KeptData):
            self._scorer = module.restored(settings, data.fitted)
        else:
            self._scorer = module.fit(settings, data.training_clicks())
        self.evaluator = FittedEvaluator(self._scorer, tuple(config.eval.metrics))

    def fitted_arrays(self) -> dict[str, np.ndarray]:
        return self._scorer.arrays()

    def full(self, params: Any, tables: Any, split: str, keep: int) -> metrics.Sums:
        sums = self.evaluator.full(params, tables, self.data.full(split))
        if not keep:
            return sums
        with_best = metrics.Sums(sums.names)
        ranks, place = sums.rankings(), 0
        for batch, seen in self.data.full(split):
            real = batch["mask"] > 0
            part = slice(place, place := place + int(real.sum()))
            best = best_unseen(self._scorer.scores(batch), seen, batch["candidates"][:, 0], keep)
            fine = np.zeros(part.stop - part.start, bool)
            with_best.add(ranks["above"][part], ranks["tied"][part], ~fine, fine, best[real])
        return with_best

    def run(self, workdir: Workdir) -> None:
        self.test_protocols(workdir, "fit", 0, None, None)


class BaselineExperiment(RankerExperiment):
    """Trains a baseline that is a `Ranker`."""

    @classmethod
    def ranker_of(cls, config: config_dict.ConfigDict) -> Ranker:
        return _module(config).ranker(_settings(config))

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        return {
            **super().sections(config),
            "model": Section((_module(config).Settings,), _lengths),
        }


class SearchBaselineRankerExperiment(SearchRankerExperiment):
    """Trains a baseline that is a `Ranker` of searches alone."""

    @classmethod
    def ranker_of(cls, config: config_dict.ConfigDict) -> Ranker:
        return _module(config).search_ranker(_settings(config))

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        return {
            **super().sections(config),
            "model": Section((_module(config).Settings,), _lengths),
        }


class ReinforcedBaselineExperiment(ReinforcedExperiment, BaselineExperiment):
    """Trains a baseline that has a stage of GRPO of its own after the supervised one."""

    rl_negatives = 0  # it ranks all items

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        return {
            **super().sections(config),
            "rl": Section(
                (StageSettings, _module(config).ReinforceSettings),
                read=lambda config: config.rl.enabled is True,
            ),
        }

    def _reinforced(self, **of_policy: Any) -> PolicyTask:
        module, values = _module(self.config), self.config.rl.to_dict()
        settings = build(module.ReinforceSettings, values, section="rl")
        return module.policy_task(self.ranker, settings, **of_policy)


def experiment_class(config: config_dict.ConfigDict) -> type[Experiment]:
    """Returns the class of the experiments of `config.method`.

    Raises:
      UserError: no such baseline.
    """
    module = _module(config)
    if hasattr(module, "search_ranker"):
        return SearchBaselineRankerExperiment
    if hasattr(module, "policy_task"):
        return ReinforcedBaselineExperiment
    return FittedExperiment if hasattr(module, "fit") else BaselineExperiment
