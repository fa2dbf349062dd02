"""Names every method, and opens the experiment of a config."""

from __future__ import annotations

import os
from collections.abc import Callable

from ml_collections import config_dict

from core.experiment import Experiment
from crs_jax.experiment import CRSExperiment
from gensar_jax.experiment import GenSARExperiment
from gensar_jax.identifier_experiment import IdentifierExperiment
from input_pipelines.dataset import Dataset
from lcrsr.baseline_experiment import open_baseline
from lcrsr.experiment import LCRSERExperiment, Teacher
from lcrsr.ranker_experiment import RecommendationExperiment
from lcrsr.search_baselines.experiment import SearchBaselineExperiment

# All others are baselines of recommendation: modules of `lcrsr.baselines`.
_EXPERIMENTS: dict[str, type[Experiment]] = {
    "lcr_ser": LCRSERExperiment,
    "gensar": GenSARExperiment,
    "gensar_identifiers": IdentifierExperiment,
    "crs": CRSExperiment,
    "search_baseline": SearchBaselineExperiment,
}


def experiment_class(method: str) -> type[Experiment]:
    """Returns the class of a method's experiments: of one that is not named here a baseline's."""
    return _EXPERIMENTS.get(method, RecommendationExperiment)


def open_experiment(
    config: config_dict.ConfigDict, data: Dataset, teacher: Teacher | None = None
) -> Experiment:
    """Opens the experiment of a resolved config; nothing is trained.

    Args:
      teacher: what LCR-SER learns from beside clicks (`experiments.teacher.open_teacher`).

    Raises:
      UserError: an unknown method, or a setting that does not fit.
    """
    if config.method == "lcr_ser":
        return LCRSERExperiment(config, data, teacher)
    if config.method in _EXPERIMENTS:
        open_one: Callable[..., Experiment] = _EXPERIMENTS[config.method]
        return open_one(config, data)
    return open_baseline(config, data)


def reopened(
    config: config_dict.ConfigDict, folder: str, *, training: bool
) -> config_dict.ConfigDict:
    """Returns the config with which the run in a folder is opened again; see `Experiment.reopened`.

    A folder without a run leaves the config as it is.
    """
    if not os.path.isdir(folder):
        return config
    return experiment_class(config.method).reopened(config, folder, training=training)
