"""Names configs/gensar.py:amazon_beauty; `:tiger` or `:dsi` after this file's name too."""

from ml_collections import config_dict

from configs import gensar


def get_config(variant: str = "gensar") -> config_dict.ConfigDict:
    return gensar.get_config(f"amazon_beauty,{variant}")
