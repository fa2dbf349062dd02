"""Item-based nearest neighbours: Qilin, or the embedded sample.

Command: python -m launch.train --config=configs/item_knn_qilin.py
"""

from ml_collections import config_dict

from configs import datasets, defaults


def method(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    config.method = "item_knn"
    config.model = config_dict.ConfigDict()
    config.model.decay = 0.6  # on validation, of .6 to 1 (docs/decisions.md)
    config.model.history_power = 0.5  # ours: long histories weigh less an item
    return config


def get_config() -> config_dict.ConfigDict:
    return datasets.qilin(method(defaults.get_config()))
