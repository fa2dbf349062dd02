"""Configures P5-CID's identifiers: the items clustered by the users that they share.

Paper: How to Index Item IDs for Recommendation Foundation Models (SIGIR-AP 2023).
Command: python -m launch.train --config=configs/p5_cid_identifiers.py:DATASET --config.data_dir=DIR
The folder is --config.identifiers of configs/gensar.py:DATASET,p5_cid, which makes the same ones
itself where it is given none. Without a data set it is qilin, and without a folder the embedded
sample.
"""

from ml_collections import config_dict

from configs import choices, identifiers_at_once

DATASETS = identifiers_at_once.SETS
MODEL = {
    "clusters": 20,  # released on Amazon Beauty; 10 was run too
    "most_items": 500,  # released on Amazon Beauty
}


def method() -> config_dict.ConfigDict:
    """Returns what does not depend on the data set."""
    config = identifiers_at_once.method("p5_cid_identifiers")
    config.model = config_dict.ConfigDict(MODEL)
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("p5_cid_identifiers", method(), choice, DATASETS)
