"""BERT4Rec: Amazon Beauty.

Command: python -m launch.train --config=configs/bert4rec_amazon_beauty.py --config.data_dir=DIR
"""

from ml_collections import config_dict

from configs import bert4rec_qilin, datasets, defaults


def get_config() -> config_dict.ConfigDict:
    config = datasets.amazon_beauty(bert4rec_qilin.method(defaults.get_config()))
    config.pretrain.batch_size = 256  # as LCR-SER's there
    return config
