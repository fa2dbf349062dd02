"""GenSAR's joint identifiers on Amazon Beauty: item vectors, RQ-VAE, identifier table.

Command: python -m launch.train --config=configs/gensar_identifiers_amazon_beauty.py \
  --config.data_dir=DIR, with DIR holding sequences.tsv, items.jsonl and queries.tsv.
"""

from ml_collections import config_dict

from configs import datasets, defaults, gensar_identifiers_qilin


def get_config() -> config_dict.ConfigDict:
    return datasets.amazon_beauty(gensar_identifiers_qilin.method(defaults.get_config()))
