"""LCR-SER on Amazon Beauty, pre-trained with a softmax over 256 negatives instead of Eq. 11's BCE.

The paper's BCE with 4 negatives is made for ranking among 100 candidates; this config is held to
the whole catalogue. Pre-training only. Command: as lcr_ser_amazon_beauty.py.
"""

from ml_collections import config_dict

from configs import lcr_ser_amazon_beauty


def get_config() -> config_dict.ConfigDict:
    config = lcr_ser_amazon_beauty.get_config()
    config.data.train_negatives = 256
    config.pretrain.recommendation = "cross_entropy"
    config.pretrain.max_epochs = 8.0
    config.rl.enabled = False
    return config
