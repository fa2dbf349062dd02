"""LCR-SER on Amazon Kindle Store (UniSAR's second data set), semi-synthetic searches: both stages.

Command: python -m launch.train --config=configs/lcr_ser_amazon_kindle.py --config.data_dir=DIR,
with DIR holding reviews_Kindle_Store_5.json.gz, meta_Kindle_Store.json.gz, query_text.txt.gz,
train.qrels.gz and test.qrels.gz. Another category's files do as well.
"""

from ml_collections import config_dict

from configs import datasets, lcr_ser_defaults


def get_config() -> config_dict.ConfigDict:
    return datasets.amazon_raw(lcr_ser_defaults.get_config())
