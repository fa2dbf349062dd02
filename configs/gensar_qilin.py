"""Names configs/gensar.py:qilin; `:tiger` or `:dsi` after this file's name too."""

from ml_collections import config_dict

from configs import gensar


def get_config(variant: str = "gensar") -> config_dict.ConfigDict:
    return gensar.get_config(f"qilin,{variant}")
