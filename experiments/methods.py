"""Opens the experiment of a config: LCR-SER, GenSAR, its identifiers, CRS, or a baseline."""

from __future__ import annotations

from ml_collections import config_dict

from core.experiment import Runnable
from crs_jax.experiment import CRSExperiment
from gensar_jax.experiment import GenSARExperiment
from gensar_jax.identifier_experiment import IdentifierExperiment
from input_pipelines.dataset import Dataset
from lcrsr.baseline_experiment import open_baseline
from lcrsr.experiment import LCRSERExperiment, Teacher
from lcrsr.search_baselines.experiment import SearchBaselineExperiment


def open_experiment(
    config: config_dict.ConfigDict, data: Dataset, teacher: Teacher | None = None
) -> Runnable:
    """Opens the experiment of a resolved config.

    Args:
      teacher: what LCR-SER learns from beside clicks (`experiments.teacher.open_teacher`).

    Raises:
      UserError: an unknown method, or a setting that does not fit.
    """
    if config.method == "lcr_ser":
        return LCRSERExperiment(config, data, teacher)
    if config.method == "gensar_identifiers":
        return IdentifierExperiment(config, data)
    if config.method == "gensar":
        return GenSARExperiment(config, data)
    if config.method == "search_baseline":
        return SearchBaselineExperiment(config, data)
    if config.method == "crs":
        return CRSExperiment(config, data)
    return open_baseline(config, data)
