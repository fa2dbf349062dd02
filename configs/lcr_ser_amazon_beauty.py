"""Names configs/lcr_ser.py:amazon_beauty: LCR-SER on Amazon Beauty."""

from ml_collections import config_dict

from configs import lcr_ser


def get_config() -> config_dict.ConfigDict:
    return lcr_ser.get_config("amazon_beauty")
