"""Names configs/crs.py:trivago: CRS on trivago's sessions."""

from ml_collections import config_dict

from configs import crs


def get_config() -> config_dict.ConfigDict:
    return crs.get_config("trivago")
