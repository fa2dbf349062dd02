"""Configures USER, the model of Yao et al. (CIKM 2021).

Command: python -m launch.train --config=configs/user.py:DATASET[,tuned] --config.data_dir=DIR
Without a data set it is qilin, and without a folder the embedded sample.
"ours" means that no paper gives the value, and that it was not tuned.
"""

from ml_collections import config_dict

from configs import choices, datasets, defaults

DATASETS = datasets.EVERY | {
    "amazon_beauty": {"train.batch_size": 256},  # as LCR-SER's there
}

VARIANTS = {
    "paper": {},
    # docs/baselines.md, the start
    "tuned": {"train.start": "spectral", "model.init_scale": 0.5},
}


def method() -> config_dict.ConfigDict:
    """Returns what does not depend on the data set."""
    config = defaults.get_config()
    config.method = "user"
    config.model = config_dict.ConfigDict()
    config.model.width = 64  # UniSAR's network; USER has 100
    config.model.heads = 2  # as UniSAR's; USER has 8, each as wide as these together
    config.model.session = 5  # ours
    config.model.dropout = 0.1  # USER
    config.model.init_scale = 0.1  # as UniSAR's
    config.model.loss = "cross_entropy"  # USER, over a request's candidates
    config.model.search_weight = 1.0  # USER trains on both alike
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("user", method(), choice, DATASETS, VARIANTS)
