"""Configures SASRec: with binary cross-entropy as published, the softmax over all items, or tuned.

Command: python -m launch.train --config=configs/sasrec.py:DATASET[,ce|tuned] --config.data_dir=DIR
Without a data set it is qilin, and without a folder the embedded sample.
"""

from ml_collections import config_dict

from configs import choices, datasets, defaults

DATASETS = datasets.EVERY | {
    "amazon_beauty": {"train.batch_size": 256},  # as LCR-SER's there
}
VARIANTS = {
    "bce": {"model.loss": "bce"},  # the paper
    "ce": {"model.loss": "full_cross_entropy", "train.table_update": "dense"},
    # LCR-SER's loss and start: docs/recipe.md
    "tuned": {
        "data.train_negatives": 0,
        "model.loss": "sampled_softmax",
        "model.dropout": 0.5,
        "train.start": "spectral",
    },
}


def method() -> config_dict.ConfigDict:
    """Returns what does not depend on the data set."""
    config = defaults.get_config()
    config.method = "sasrec"
    config.model = config_dict.ConfigDict()
    config.model.width = 64
    config.model.layers = 2  # the paper
    config.model.heads = 2
    config.model.dropout = 0.2  # the paper: .2 on dense sets, .5 on sparse
    config.model.init_scale = 0.02
    config.train.lambda_l2 = 0.0
    config.train.targets_per_window = 8  # docs/results.md, training on windows
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("sasrec", method(), choice, DATASETS, VARIANTS)
