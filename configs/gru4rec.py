"""Configures GRU4Rec with the softmax over all items.

Command: python -m launch.train --config=configs/gru4rec.py:DATASET --config.data_dir=DIR
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
    config.method = "gru4rec"
    config.model = config_dict.ConfigDict()
    config.model.width = 64
    config.model.hidden = 64
    config.model.dropout = 0.2
    config.model.init_scale = 0.02
    config.model.loss = "full_cross_entropy"
    config.train.lambda_l2 = 0.0
    config.train.table_update = "dense"
    config.train.targets_per_window = 8  # docs/results.md, training on windows
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("gru4rec", method(), choice, DATASETS)
