"""SASRec with the softmax over all items: Amazon Beauty.

Command: python -m launch.train --config=configs/sasrec_ce_amazon_beauty.py --config.data_dir=DIR
"""

from ml_collections import config_dict

from configs import datasets, defaults, sasrec_ce_qilin


def get_config() -> config_dict.ConfigDict:
    config = datasets.amazon_beauty(sasrec_ce_qilin.method(defaults.get_config()))
    config.pretrain.batch_size = 256  # as LCR-SER's there
    return config
