"""Configures the ranking of items by their training clicks, the floor of every protocol.

Command: python -m launch.train --config=configs/popularity.py:DATASET --config.data_dir=DIR
Without a data set it is qilin, and without a folder the embedded sample.
"""

from ml_collections import config_dict

from configs import choices, datasets, defaults

DATASETS = datasets.EVERY


def method() -> config_dict.ConfigDict:
    """Returns what does not depend on the data set."""
    config = defaults.get_config()
    config.method = "popularity"
    defaults.without(config, "train", "loop.log_every", "loop.checkpoint_every")
    config.model = config_dict.ConfigDict()
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("popularity", method(), choice, DATASETS)
