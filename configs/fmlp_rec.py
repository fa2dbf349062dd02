"""Configures FMLP-Rec: with binary cross-entropy as published, or the softmax over all items.

Command: python -m launch.train --config=configs/fmlp_rec.py:DATASET[,ce] --config.data_dir=DIR
Without a data set it is qilin, and without a folder the embedded sample.
"FMLP-Rec" means the released code's defaults.
"""

from ml_collections import config_dict

from configs import choices, datasets, defaults

DATASETS = datasets.EVERY | {
    "amazon_beauty": {"train.batch_size": 256},  # as LCR-SER's there
}
VARIANTS = {
    "bce": {"model.loss": "bce"},  # the paper
    "ce": {"model.loss": "full_cross_entropy", "train.table_update": "dense"},
}


def method() -> config_dict.ConfigDict:
    """Returns what depends neither on the data set nor on the variant."""
    config = defaults.get_config()
    config.method = "fmlp_rec"
    config.model = config_dict.ConfigDict()
    config.model.width = 64  # FMLP-Rec
    config.model.layers = 2  # FMLP-Rec
    config.model.dropout = 0.5  # FMLP-Rec
    config.model.init_scale = 0.02  # FMLP-Rec
    config.train.lambda_l2 = 0.0
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("fmlp_rec", method(), choice, DATASETS, VARIANTS)
