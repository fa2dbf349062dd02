"""Configures SESRec.

Command: python -m launch.train --config=configs/sesrec.py:DATASET[,tuned] --config.data_dir=DIR
Without a data set it is qilin, and without a folder the embedded sample.
"SESRec" means the released settings, where its two data sets differ those of the commercial one.
"""

from ml_collections import config_dict

from configs import choices, datasets, defaults

_AMAZON = {"model.heads": 4}  # SESRec on Amazon
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
    config.method = "sesrec"
    config.model = config_dict.ConfigDict()
    config.model.width = 32  # as UniSAR's
    config.model.hidden = 64
    config.model.layers = 1  # SESRec
    config.model.heads = 2  # SESRec on its commercial set
    config.model.dropout = 0.1  # SESRec
    config.model.init_scale = 0.1  # as LCR-SER's
    config.model.loss = "bce"  # SESRec
    config.model.mlp_widths = (200, 80)  # SESRec
    config.model.alignment_weight = 0.1  # SESRec
    config.model.alignment_temperature = 0.1  # SESRec
    config.model.alignment_pairs = 8192  # ours: the released code takes all of a batch
    config.model.triplet_weight = 0.001  # SESRec
    config.model.margin = 0.1  # SESRec
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("sesrec", method(), choice, DATASETS, VARIANTS)
