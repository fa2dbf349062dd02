"""Configures LRURec: with the softmax over all items as published, or binary cross-entropy.

Command: python -m launch.train --config=configs/lrurec.py:DATASET[,bce] --config.data_dir=DIR
Without a data set it is qilin, and without a folder the embedded sample.
"LRURec" means the released code's defaults.
"""

from ml_collections import config_dict

from configs import choices, datasets, defaults

DATASETS = datasets.EVERY | {
    "amazon_beauty": {"train.batch_size": 256},  # as LCR-SER's there
}
VARIANTS = {
    "ce": {"model.loss": "full_cross_entropy", "train.table_update": "dense"},  # the paper
    "bce": {"model.loss": "bce"},
}


def method() -> config_dict.ConfigDict:
    """Returns what depends neither on the data set nor on the variant."""
    config = defaults.get_config()
    config.method = "lrurec"
    config.model = config_dict.ConfigDict()
    config.model.width = 64  # LRURec
    config.model.layers = 2  # LRURec
    config.model.dropout = 0.2  # LRURec
    config.model.init_scale = 0.02  # LRURec
    config.train.lambda_l2 = 0.0
    config.train.targets_per_window = 8  # docs/results.md, training on windows
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("lrurec", method(), choice, DATASETS, VARIANTS)
