"""Configures any baseline on any data set: configs/baseline.py:METHOD,DATASET.

Command: python -m launch.train --config=configs/baseline.py:unisar,kuaisar --config.data_dir=DIR
METHOD is a file METHOD_qilin.py here, whose settings it takes; DATASET a function of datasets.py.
The batch is by the size of the log (`batch_for` in lcrsr/ranker_experiment.py) unless one is set.
"""

import importlib
import pathlib

from ml_collections import config_dict

from configs import datasets, defaults

METHODS = tuple(
    sorted(
        name
        for path in pathlib.Path(__file__).parent.glob("*_qilin.py")
        if not (name := path.stem.removesuffix("_qilin")).startswith(("gensar", "lcr_ser"))
    )
)
DATASETS = (
    "amazon_beauty",
    "amazon_raw",
    "csv_log",
    "kuaisar",
    "qilin",
    "trivago",
    "unisar_pickles",
)


def get_config(choice: str = "") -> config_dict.ConfigDict:
    method, _, dataset = choice.partition(",")
    if method not in METHODS or dataset not in DATASETS:
        raise ValueError(
            f"expected configs/baseline.py:METHOD,DATASET with a method of {', '.join(METHODS)} "
            f"and a data set of {', '.join(DATASETS)}, found {choice!r}"
        )
    module = importlib.import_module(f"configs.{method}_qilin")
    config = module.method(defaults.get_config())
    config.pretrain.batch_size = 0  # by the size of the log
    return getattr(datasets, dataset)(config)
