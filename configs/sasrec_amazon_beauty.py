"""SASRec with binary cross-entropy, as published: Amazon Beauty.

Command: python -m launch.train --config=configs/sasrec_amazon_beauty.py --config.data_dir=DIR
"""

from ml_collections import config_dict

from configs import datasets, defaults, sasrec_qilin


def get_config() -> config_dict.ConfigDict:
    config = datasets.amazon_beauty(sasrec_qilin.method(defaults.get_config()))
    config.pretrain.batch_size = 256  # as LCR-SER's there
    return config
