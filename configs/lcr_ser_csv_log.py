"""Names configs/lcr_ser.py:csv_log: LCR-SER on your own log."""

from ml_collections import config_dict

from configs import lcr_ser


def get_config() -> config_dict.ConfigDict:
    return lcr_ser.get_config("csv_log")
