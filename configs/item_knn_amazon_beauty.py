"""Names configs/item_knn.py:amazon_beauty: item-kNN on Amazon Beauty."""

from ml_collections import config_dict

from configs import item_knn


def get_config() -> config_dict.ConfigDict:
    return item_knn.get_config("amazon_beauty")
