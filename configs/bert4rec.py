"""Configures BERT4Rec.

Command: python -m launch.train --config=configs/bert4rec.py:DATASET --config.data_dir=DIR
Without a data set it is qilin, and without a folder the embedded sample.
"""

from ml_collections import config_dict

from configs import choices, datasets, defaults

DATASETS = datasets.EVERY | {
    "amazon_beauty": {"train.batch_size": 256},  # as LCR-SER's there
}


def method() -> config_dict.ConfigDict:
    """Returns what does not depend on the data set."""
    config = defaults.get_config()
    config.method = "bert4rec"
    config.model = config_dict.ConfigDict()
    config.model.width = 64  # the paper
    config.model.layers = 2  # the paper
    config.model.heads = 2  # the paper
    config.model.dropout = 0.2
    config.model.init_scale = 0.02  # the paper
    config.model.loss = "full_cross_entropy"  # the paper
    config.model.mask_share = 0.2  # the paper
    config.train.lambda_l2 = 0.0
    config.train.table_update = "dense"
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("bert4rec", method(), choice, DATASETS)
