"""LCR-SER on Amazon Beauty with semi-synthetic searches: both stages.

Command: python -m launch.train --config=configs/lcr_ser_amazon_beauty.py \
  --config.data_dir=DIR, with DIR holding sequences.tsv, items.jsonl and queries.tsv.
"""

from ml_collections import config_dict

from configs import lcr_ser_defaults


def get_config() -> config_dict.ConfigDict:
    config = lcr_ser_defaults.get_config()
    config.dataset = "amazon_beauty"
    config.data.clicks = 1  # a semi-synthetic search has the one bought item
    return config
