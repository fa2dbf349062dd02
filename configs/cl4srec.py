"""Configures CL4SRec: SASRec with contrast between changed views of a history.

Command: python -m launch.train --config=configs/cl4srec.py:DATASET[,bce] --config.data_dir=DIR
Without a data set it is qilin, and without a folder the embedded sample.
"DuoRec" means CL4SRec as re-implemented with DuoRec; the paper's own settings were not found. Sizes
of the encoder are those of sasrec.py.
"""

from ml_collections import config_dict

from configs import choices, datasets, sasrec

DATASETS = datasets.EVERY | {
    "amazon_beauty": {"train.batch_size": 256},  # as LCR-SER's there
}
# On small logs DuoRec's weight holds the next item back (docs/baselines.md).
TRIED = {"model.contrastive_weight": (0.0, 0.1)}
VARIANTS = {
    "ce": {"model.loss": "full_cross_entropy", "train.table_update": "dense"},  # DuoRec
    "bce": {"model.loss": "bce"},
}


def method() -> config_dict.ConfigDict:
    """Returns what depends neither on the data set nor on the variant."""
    config = sasrec.method()
    config.method = "cl4srec"
    config.model.contrastive_weight = 0.1  # DuoRec
    config.model.temperature = 1.0  # DuoRec
    config.model.crop = 0.6  # DuoRec
    config.model.hide = 0.3  # DuoRec
    config.model.reorder = 0.6  # DuoRec
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("cl4srec", method(), choice, DATASETS, VARIANTS)
