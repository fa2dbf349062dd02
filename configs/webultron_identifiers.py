"""Configures WebUltron's identifiers: product quantisation of the items' text vectors.

Paper: WebUltron, An Ultimate Retriever on Webpages Under the Model-Centric Paradigm (TKDE 2023).
Command: python -m launch.train --config=configs/webultron_identifiers.py:DATASET \\
  --config.data_dir=DIR [--config.model.parts=4]
The folder is --config.identifiers of configs/gensar.py:DATASET,webultron, which makes the same ones
itself where it is given none (there the keys begin with config.identifier_model). 24 parts are six
times GenSAR's codes: run 4 as well. Without a data set it is qilin, and without a folder the
embedded sample, whose 750 items want fewer codes: --config.model.codes=32.
"""

from ml_collections import config_dict

from configs import choices, identifiers_at_once

DATASETS = identifiers_at_once.SETS
MODEL = {
    "parts": 24,  # released
    "codes": 256,  # released
    "repeated": "numbered",  # ours; or "refused"
}
VECTORS = {
    # "tfidf_svd", "minilm", or the name or folder of a text encoder (the paper's: GTR).
    "semantic": "tfidf_svd",
    # Of the offline default, GenSAR's (configs/gensar_identifiers.py).
    "width": 128,
    "sketch_width": 64,
    "sketch_share": 0.1,
}


def method() -> config_dict.ConfigDict:
    """Returns what does not depend on the data set."""
    config = identifiers_at_once.method("webultron_identifiers")
    config.vectors = config_dict.ConfigDict(VECTORS)
    config.model = config_dict.ConfigDict(MODEL)
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("webultron_identifiers", method(), choice, DATASETS)
