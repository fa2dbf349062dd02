"""From a config to its experiment: LCR-SER, GenSAR, its identifiers, CRS, or a baseline."""

from __future__ import annotations

from ml_collections import config_dict

from launch.baselines import open_baseline
from launch.crs import CRSExperiment
from launch.data import Data
from launch.experiment import Runnable
from launch.gensar import GenSARExperiment
from launch.gensar_identifiers import IdentifierExperiment
from launch.lcr_ser import LCRSERExperiment
from launch.search_baselines import SearchBaselineExperiment


def open_experiment(config: config_dict.ConfigDict, data: Data) -> Runnable:
    """The experiment of a resolved config.

    Raises:
      UserError: an unknown method, or a setting that does not fit.
    """
    if config.method == "lcr_ser":
        return LCRSERExperiment(config, data)
    if config.method == "gensar_identifiers":
        return IdentifierExperiment(config, data)
    if config.method == "gensar":
        return GenSARExperiment(config, data)
    if config.method == "search_baseline":
        return SearchBaselineExperiment(config, data)
    if config.method == "crs":
        return CRSExperiment(config, data)
    return open_baseline(config, data)
