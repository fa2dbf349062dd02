"""GenSAR's joint identifiers on Amazon Electronics, with the paper's own settings.

Command: python -m launch.train --config=configs/gensar_identifiers_amazon_electronics.py \
  --config.data_dir=DIR, with DIR as of configs/gensar_amazon_electronics.py. The paper's
collaborative vectors are those of a trained UniSAR: run baseline.py:unisar,amazon_raw, then
launch.export_vectors, and pass --config.vectors.collaborative=items.npy. Without it they are
factors of the training clicks, which is a departure.
"""

from ml_collections import config_dict

from configs import datasets, defaults, gensar_identifiers_qilin


def get_config() -> config_dict.ConfigDict:
    config = datasets.amazon_raw(gensar_identifiers_qilin.method(defaults.get_config()))
    # The paper's; needs the package sentence-transformers. "tfidf_svd" needs nothing.
    config.vectors.semantic = "BAAI/bge-base-en-v1.5"
    config.train.epochs = 500  # released
    return config
