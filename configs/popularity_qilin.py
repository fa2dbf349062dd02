"""Most popular items, the floor of every protocol: Qilin, or the embedded sample.

Command: python -m launch.train --config=configs/popularity_qilin.py
"""

from ml_collections import config_dict

from configs import datasets, defaults


def method(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    config.method = "popularity"
    config.model = config_dict.ConfigDict()
    return config


def get_config() -> config_dict.ConfigDict:
    return datasets.qilin(method(defaults.get_config()))
