"""Configures Query-SeqRec.

Command: python -m launch.train --config=configs/query_seqrec.py:DATASET[,VARIANT] \
--config.data_dir=DIR
Without a data set it is qilin, and without a folder the embedded sample.
VARIANT: ce, the softmax over all items as published; bce, with sampled negatives.
"Query-SeqRec" means the released settings, where its data sets differ those of Unsplash.
"""

from ml_collections import config_dict

from configs import choices, datasets, defaults

DATASETS = datasets.EVERY | {
    "amazon_beauty": {"train.batch_size": 256},  # as LCR-SER's there
}
VARIANTS = {
    "ce": {"model.loss": "full_cross_entropy", "train.table_update": "dense"},  # Query-SeqRec
    "bce": {"model.loss": "bce"},
}


def method() -> config_dict.ConfigDict:
    """Returns what does not depend on the data set."""
    config = defaults.get_config()
    config.method = "query_seqrec"
    config.model = config_dict.ConfigDict()
    config.model.width = 64  # Query-SeqRec, as all below except where noted
    config.model.length = 50
    config.model.layers = 2
    config.model.heads = 2
    config.model.dropout = 0.0
    config.model.init_scale = 0.02  # as SASRec's
    config.model.replaced_items = 0.1
    config.model.replaced_queries = 0.1
    config.train.lambda_l2 = 0.0
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("query_seqrec", method(), choice, DATASETS, VARIANTS)
