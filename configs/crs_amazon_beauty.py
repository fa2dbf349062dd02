"""CRS on Amazon Beauty, whose searches are semi-synthetic: a query is an item's category path.

Paper: Towards Context-aware Reasoning-enhanced Generative Searching in E-commerce.
Command: python -m launch.train --config=configs/crs_amazon_beauty.py --config.data_dir=DIR \
  --config.model.checkpoint=Q, with DIR holding sequences.tsv, items.jsonl and queries.tsv, and Q a
folder of Qwen3-0.6B. Without Q the network starts from scratch with a tokenizer of its own. Items'
texts leave their categories out: the query is one.
"""

from ml_collections import config_dict

from configs import crs_sample, datasets, defaults


def get_config() -> config_dict.ConfigDict:
    config = datasets.amazon_beauty(crs_sample.method(defaults.get_config()))
    return config
