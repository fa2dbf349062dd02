"""Configures UnifiedSSR.

Command: python -m launch.train --config=configs/unified_ssr.py:DATASET[,tuned] \
--config.data_dir=DIR
Without a data set it is qilin, and without a folder the embedded sample.
"UnifiedSSR" means the released settings.
"""

from ml_collections import config_dict

from configs import choices, datasets, defaults

DATASETS = datasets.EVERY | {
    "amazon_beauty": {"train.batch_size": 256},  # as LCR-SER's there
}

VARIANTS = {
    "paper": {},
    # docs/baselines.md, the start
    "tuned": {
        "data.train_negatives": 0,
        "model.loss": "sampled_softmax",
        "model.dropout": 0.2,
        "model.init_scale": 0.1,
        "train.start": "spectral",
    },
}


def method() -> config_dict.ConfigDict:
    """Returns what does not depend on the data set."""
    config = defaults.get_config()
    config.method = "unified_ssr"
    config.model = config_dict.ConfigDict()
    config.model.width = 32  # UnifiedSSR, as all below except where noted
    config.model.inner = 64
    config.model.layers = 2
    config.model.heads = 4
    config.model.sessions = 2
    config.model.dropout = 0.5
    config.model.init_scale = 0.02  # ours: at .1 scores begin with a deviation above 3
    # Of users' rows, which every position adds. UnifiedSSR's is sqrt(2 / (U + width)), as Xavier
    # has it: .026 of the sample's 3,000 users, .009 of Amazon Beauty's.
    config.model.user_scale = 0.02
    config.model.correlation_weight = 0.1
    config.model.loss = "bce"
    config.model.search_weight = 1.0  # pre-training has both alike
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("unified_ssr", method(), choice, DATASETS, VARIANTS)
