"""GenSAR's joint training on Amazon Beauty; `:tiger` after the file's name is TIGER.

Command: python -m launch.train --config=configs/gensar_amazon_beauty.py --config.data_dir=DIR \
  --config.identifiers=W, with DIR holding sequences.tsv, items.jsonl and queries.tsv, and W the
workdir of configs/gensar_identifiers_amazon_beauty.py.
"""

from ml_collections import config_dict

from configs import datasets, defaults, gensar_qilin


def get_config(system: str = "gensar") -> config_dict.ConfigDict:
    return datasets.amazon_beauty(gensar_qilin.method(defaults.get_config(), system))
