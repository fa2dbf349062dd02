"""Configures NRHUB, in our reading of it: lcrsr/baselines/nrhub.py.

Command: python -m launch.train --config=configs/nrhub.py:DATASET[,ce] --config.data_dir=DIR
Without a data set it is qilin, and without a folder the embedded sample.
ce is the softmax over all items, and bce, with sampled negatives, where none is named.
"ours" means that no paper gives the value, and that it was not tuned.
"""

from ml_collections import config_dict

from configs import choices, datasets, defaults

DATASETS = datasets.EVERY | {
    "amazon_beauty": {"train.batch_size": 256},  # as LCR-SER's there
}
VARIANTS = {
    "bce": {"model.loss": "bce"},  # UniSAR, of all its baselines
    "ce": {"model.loss": "full_cross_entropy", "train.table_update": "dense"},
}


def method() -> config_dict.ConfigDict:
    """Returns what does not depend on the data set."""
    config = defaults.get_config()
    config.method = "nrhub"
    config.model = config_dict.ConfigDict()
    config.model.width = 64  # UniSAR's network
    config.model.attention_width = 64  # ours; 200 beside 400 filters in the authors' other models
    config.model.kernel = 3  # the authors' other models
    config.model.dropout = 0.2  # the authors' other models
    config.model.init_scale = 0.1  # as UniSAR's
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("nrhub", method(), choice, DATASETS, VARIANTS)
