"""SESRec: Amazon Beauty.

Command: python -m launch.train --config=configs/sesrec_amazon_beauty.py --config.data_dir=DIR
"""

from ml_collections import config_dict

from configs import datasets, defaults, sesrec_qilin


def get_config() -> config_dict.ConfigDict:
    config = datasets.amazon_beauty(sesrec_qilin.method(defaults.get_config()))
    config.model.heads = 4  # SESRec on Amazon
    config.pretrain.batch_size = 256  # as LCR-SER's there
    return config
