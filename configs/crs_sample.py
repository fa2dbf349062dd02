"""Names configs/crs.py:qilin: CRS on Qilin, or on the embedded sample."""

from ml_collections import config_dict

from configs import crs


def get_config() -> config_dict.ConfigDict:
    return crs.get_config("qilin")
