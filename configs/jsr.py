"""Configures JSR, in our reading of it: lcrsr/baselines/jsr.py.

Command: python -m launch.train --config=configs/jsr.py:DATASET[,tuned] --config.data_dir=DIR
Without a data set it is qilin, and without a folder the embedded sample.
"ours" means that no paper gives the value, and that it was not tuned.
"""

from ml_collections import config_dict

from configs import choices, datasets, defaults

DATASETS = datasets.EVERY | {
    "amazon_beauty": {"train.batch_size": 256},  # as LCR-SER's there
}

VARIANTS = {
    "paper": {},
    # docs/baselines.md, the start
    "tuned": {"train.start": "spectral"},
}


def method() -> config_dict.ConfigDict:
    """Returns what does not depend on the data set."""
    config = defaults.get_config()
    config.method = "jsr"
    config.model = config_dict.ConfigDict()
    config.model.width = 64  # UniSAR's network
    config.model.mlp_widths = (64, 32)  # ours
    config.model.dropout = 0.1  # as UniSAR's
    config.model.init_scale = 0.1  # as UniSAR's
    config.model.loss = "bce"  # UniSAR, of all its baselines
    config.model.search_weight = 1.0  # the paper has one sum; its weight is not known
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("jsr", method(), choice, DATASETS, VARIANTS)
