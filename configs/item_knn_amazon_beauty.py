"""Item-based nearest neighbours: Amazon Beauty.

Command: python -m launch.train --config=configs/item_knn_amazon_beauty.py --config.data_dir=DIR
"""

from ml_collections import config_dict

from configs import datasets, defaults, item_knn_qilin


def get_config() -> config_dict.ConfigDict:
    return datasets.amazon_beauty(item_knn_qilin.method(defaults.get_config()))
