"""ReaRec, ensemble reasoning learning: Amazon Beauty.

Command: python -m launch.train --config=configs/rearec_erl_amazon_beauty.py --config.data_dir=DIR
"""

from ml_collections import config_dict

from configs import datasets, defaults, rearec_erl_qilin


def get_config() -> config_dict.ConfigDict:
    config = datasets.amazon_beauty(rearec_erl_qilin.method(defaults.get_config()))
    config.pretrain.batch_size = 256  # as LCR-SER's there
    return config
