"""Names configs/popularity.py:amazon_beauty: popularity on Amazon Beauty."""

from ml_collections import config_dict

from configs import popularity


def get_config() -> config_dict.ConfigDict:
    return popularity.get_config("amazon_beauty")
