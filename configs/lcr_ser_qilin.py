"""Names configs/lcr_ser.py:qilin: LCR-SER on Qilin, or on the embedded sample."""

from ml_collections import config_dict

from configs import lcr_ser


def get_config() -> config_dict.ConfigDict:
    return lcr_ser.get_config("qilin")
