"""Configures UniSAR.

Command: python -m launch.train --config=configs/unisar.py:DATASET[,tuned] --config.data_dir=DIR
Without a data set it is qilin, and without a folder the embedded sample.
"UniSAR" means the released settings: those for KuaiSAR, and on Amazon those for Amazon.
"""

from ml_collections import config_dict

from configs import choices, datasets, defaults

_AMAZON = {
    "model.alignment_weight": 0.1,
    "model.alignment_temperature": 0.1,
    "model.transition_weight": 0.01,
    "model.search_weight": 0.01,
}
DATASETS = datasets.EVERY | {
    "amazon_beauty": _AMAZON | {"train.batch_size": 256},  # as LCR-SER's there
    "amazon_raw": _AMAZON,
}

VARIANTS = {
    "paper": {},
    # docs/baselines.md, the start
    "tuned": {"train.start": "spectral", "model.init_scale": 0.5},
}


def method() -> config_dict.ConfigDict:
    """Returns what does not depend on the data set."""
    config = defaults.get_config()
    config.method = "unisar"
    config.model = config_dict.ConfigDict()
    config.model.width = 32  # UniSAR, as all below except where noted
    config.model.hidden = 64
    config.model.layers = 1
    config.model.heads = 2
    config.model.dropout = 0.1
    config.model.init_scale = 0.1  # as LCR-SER's
    config.model.loss = "bce"
    config.model.experts = 4
    config.model.expert_width = 64
    config.model.tower_widths = (128, 64, 200, 80)
    config.model.alignment_weight = 0.001
    config.model.alignment_temperature = 0.5
    config.model.alignment_pairs = 8192  # ours: the released code takes all of a batch
    config.model.transition_weight = 0.1
    config.model.transition_temperature = 0.1
    config.model.search_weight = 0.1
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("unisar", method(), choice, DATASETS, VARIANTS)
