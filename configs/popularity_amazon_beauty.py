"""Most popular items, the floor of every protocol: Amazon Beauty.

Command: python -m launch.train --config=configs/popularity_amazon_beauty.py --config.data_dir=DIR
"""

from ml_collections import config_dict

from configs import datasets, defaults, popularity_qilin


def get_config() -> config_dict.ConfigDict:
    return datasets.amazon_beauty(popularity_qilin.method(defaults.get_config()))
