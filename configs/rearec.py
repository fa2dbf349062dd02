"""Configures ReaRec: ensemble (erl) or progressive (prl) reasoning learning.

Command: python -m launch.train --config=configs/rearec.py:DATASET[,prl] --config.data_dir=DIR
Without a data set it is qilin, and without a folder the embedded sample.
"ReaRec" means the released code's defaults; sizes of the backbone are those of sasrec.py.
"""

from ml_collections import config_dict

from configs import choices, datasets, sasrec

DATASETS = datasets.EVERY | {
    "amazon_beauty": {"train.batch_size": 256},  # as LCR-SER's there
}
VARIANTS = {
    "erl": {"model.variant": "erl", "model.kl_weight": 0.05},  # ReaRec
    "prl": {
        "model.variant": "prl",
        "model.temperature_decay": 5.0,  # ReaRec
        "model.progressive_weight": 1.0,  # ReaRec
        "model.contrastive_weight": 1.0,  # ReaRec
        "model.noise": 0.01,  # ReaRec
    },
}


def method() -> config_dict.ConfigDict:
    """Returns what depends neither on the data set nor on the variant."""
    config = sasrec.method()
    config.method = "rearec"
    config.model.reasoning_steps = 2  # ReaRec
    config.model.temperature = 0.07  # ReaRec
    # The softmax is over all items.
    config.train.table_update = "dense"
    config.train.targets_per_window = 8  # docs/results.md, training on windows
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("rearec", method(), choice, DATASETS, VARIANTS)
