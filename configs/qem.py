"""Configures QEM, a model of personalised product search, which answers searches alone.

Command: python -m launch.train --config=configs/qem.py:DATASET --config.data_dir=DIR
Without a data set it is qilin, and without a folder the embedded sample.
"TEM" means the released settings, as its README has them; those of QEM are the same.
"""

from ml_collections import config_dict

from configs import choices, datasets, defaults

DATASETS = datasets.EVERY | {
    "amazon_beauty": {"train.batch_size": 256},  # as LCR-SER's there
    # As recommenders there: whole catalogues take days.
    "kuaisar": {"eval.search_protocols": ("neg99",)},
    "unisar_pickles": {"eval.search_protocols": ("neg99",)},
}


def method() -> config_dict.ConfigDict:
    """Returns what does not depend on the data set."""
    config = defaults.get_config()
    config.method = "qem"
    defaults.without(config, "eval.protocols")
    config.data.train_negatives = 5  # TEM
    config.model = config_dict.ConfigDict()
    config.model.width = 128  # TEM, as all below except where noted
    config.model.dropout = 0.1
    config.model.init_scale = 0.1  # as UniSAR's
    config.model.loss = "bce"
    config.train.learning_rate = 5e-4
    config.train.lambda_l2 = 0.0
    config.eval.search_protocols = ("neg99", "full")
    config.eval.selection = "ndcg@5/search/neg99"
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("qem", method(), choice, DATASETS)
