"""Configures item-based nearest neighbours, which are fitted and not trained.

Command: python -m launch.train --config=configs/item_knn.py:DATASET --config.data_dir=DIR
Without a data set it is qilin, and without a folder the embedded sample.
"""

from ml_collections import config_dict

from configs import choices, datasets, defaults

DATASETS = datasets.EVERY
# What trials of launch.zoo vary, from and to.
TRIED = {"model.decay": (0.3, 1.0), "model.history_power": (0.0, 1.0)}


def method() -> config_dict.ConfigDict:
    """Returns what does not depend on the data set."""
    config = defaults.get_config()
    config.method = "item_knn"
    defaults.without(config, "train", "loop.log_every", "loop.checkpoint_every")
    config.model = config_dict.ConfigDict()
    config.model.decay = 0.6  # on validation, of .6 to 1 (docs/decisions.md)
    config.model.history_power = 0.5  # ours: long histories weigh less an item
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("item_knn", method(), choice, DATASETS)
