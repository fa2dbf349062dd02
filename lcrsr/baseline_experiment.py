"""Opens a baseline from a config: any module of `lcrsr.baselines`, named by `config.method`.

A module that trains by gradients has `Settings` and `ranker(settings) -> Ranker`; one that is
fitted at once has `Settings`, `fit(settings, clicks)` and `restored(settings, arrays)`. Adding one
touches its own file and its config.
"""

from __future__ import annotations

import importlib.util
import pkgutil
from typing import Any

import numpy as np
from ml_collections import config_dict

import lcrsr.baselines
from core.errors import UserError
from core.experiment import Experiment
from core.settings import build
from core.workdir import Workdir
from input_pipelines.dataset import Dataset
from input_pipelines.kept_data import KeptData
from input_pipelines.protocols import check_evaluation
from lcrsr.baselines.fitted import FittedEvaluator
from lcrsr.ranker_experiment import RankerExperiment, RecommendationExperiment

_SHARED = ("fitted", "sequence", "two_histories")


def names() -> list[str]:
    """Returns the names of the baselines, sorted."""
    modules = (module.name for module in pkgutil.iter_modules(lcrsr.baselines.__path__))
    return sorted(set(modules) - set(_SHARED))


class FittedExperiment(RecommendationExperiment):
    """Fits a baseline without training whenever it is opened, from the training clicks."""

    stages: tuple[str, ...] = ("fit",)

    def __init__(self, config: config_dict.ConfigDict, data: Dataset, module: Any, settings: Any):
        check_evaluation(config)
        self.config, self.data = config, data
        if isinstance(data, KeptData):
            self._scorer = module.restored(settings, data.fitted)
        else:
            self._scorer = module.fit(settings, data.training_clicks())
        self.evaluator = FittedEvaluator(self._scorer, tuple(config.eval.metrics))

    def fitted_arrays(self) -> dict[str, np.ndarray]:
        return self._scorer.arrays()

    def run(self, workdir: Workdir) -> None:
        self.test_protocols(workdir, "fit", 0, None, None)


def open_baseline(config: config_dict.ConfigDict, data: Dataset) -> Experiment:
    """Opens the experiment of `config.method`.

    Raises:
      UserError: no such baseline, or settings it refuses.
    """
    if config.method not in names():
        raise UserError(
            f"expected config.method lcr_ser or a baseline ({', '.join(names())}), found "
            f"{config.method!r}"
        )
    module: Any = importlib.import_module(f"lcrsr.baselines.{config.method}")
    values = config.model.to_dict() | {"rec_length": config.data.rec_length}
    values |= {"search_length": config.data.search_length}
    settings = build(module.Settings, values, section="model")
    if hasattr(module, "fit"):
        return FittedExperiment(config, data, module, settings)
    try:
        return RankerExperiment(config, data, module.ranker(settings))
    except ValueError as error:
        raise UserError(f"config.model: {error}") from None
