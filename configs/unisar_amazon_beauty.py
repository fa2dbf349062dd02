"""UniSAR: Amazon Beauty, with the released settings for Amazon.

Command: python -m launch.train --config=configs/unisar_amazon_beauty.py --config.data_dir=DIR
"""

from ml_collections import config_dict

from configs import datasets, defaults, unisar_qilin


def get_config() -> config_dict.ConfigDict:
    config = datasets.amazon_beauty(unisar_qilin.method(defaults.get_config()))
    config.model.alignment_weight = 0.1
    config.model.alignment_temperature = 0.1
    config.model.transition_weight = 0.01
    config.model.search_weight = 0.01
    config.pretrain.batch_size = 256  # as LCR-SER's there
    return config
