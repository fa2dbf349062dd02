"""Names every method, and opens the experiment of a config."""

from __future__ import annotations

import os
from collections.abc import Callable

from ml_collections import config_dict

from core.experiment import Experiment
from crs_jax.baselines.latentr3 import LatentR3Experiment
from crs_jax.experiment import CRSExperiment
from experiments.search_floors import SearchFloorExperiment
from gensar_jax import identifier_methods
from gensar_jax.baselines.ltrgr import LTRGRExperiment
from gensar_jax.baselines.webultron import WebUltronExperiment
from gensar_jax.experiment import GenSARExperiment
from input_pipelines.dataset import Dataset
from lcrsr import baseline_experiment
from lcrsr.experiment import LCRSERExperiment, Teacher

# All others are baselines: modules of `lcrsr.baselines`.
_EXPERIMENTS: dict[str, type[Experiment]] = {
    "lcr_ser": LCRSERExperiment,
    "gensar": GenSARExperiment,
    "ltrgr": LTRGRExperiment,
    "webultron": WebUltronExperiment,
    **identifier_methods.METHODS,
    "crs": CRSExperiment,
    "latentr3": LatentR3Experiment,
    "search_baseline": SearchFloorExperiment,
}


def experiment_class(config: config_dict.ConfigDict) -> type[Experiment]:
    """Returns the class of the experiments of a config's method.

    Raises:
      UserError: an unknown method.
    """
    method = config.get("method")
    known = isinstance(method, str) and method in _EXPERIMENTS
    return _EXPERIMENTS[method] if known else baseline_experiment.experiment_class(config)


def check_settings(config: config_dict.ConfigDict) -> None:
    """Finds what is wrong with a config whatever the data, as `Experiment.check_settings`."""
    experiment_class(config).check_settings(config)


def open_experiment(
    config: config_dict.ConfigDict, data: Dataset, teacher: Teacher | None = None
) -> Experiment:
    """Opens the experiment of a resolved config; nothing is trained.

    Args:
      teacher: what LCR-SER learns from beside clicks (`experiments.teacher.open_teacher`).

    Raises:
      UserError: an unknown method, or a setting that does not fit.
    """
    open_one: Callable[..., Experiment] = experiment_class(config)
    return open_one(config, data) if teacher is None else open_one(config, data, teacher)


def reopened(
    config: config_dict.ConfigDict, folder: str, *, training: bool
) -> config_dict.ConfigDict:
    """Returns the config with which the run in a folder is opened again; see `Experiment.reopened`.

    A folder without a run leaves the config as it is.
    """
    if not os.path.isdir(folder):
        return config
    return experiment_class(config).reopened(config, folder, training=training)
