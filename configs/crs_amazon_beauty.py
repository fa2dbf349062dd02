"""Names configs/crs.py:amazon_beauty: CRS on Amazon Beauty."""

from ml_collections import config_dict

from configs import crs


def get_config() -> config_dict.ConfigDict:
    return crs.get_config("amazon_beauty")
