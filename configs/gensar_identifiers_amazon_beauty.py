"""Names configs/gensar_identifiers.py:amazon_beauty: GenSAR's identifiers on Amazon Beauty."""

from ml_collections import config_dict

from configs import gensar_identifiers


def get_config() -> config_dict.ConfigDict:
    return gensar_identifiers.get_config("amazon_beauty")
