"""Configures GENRE's identifiers: the items' titles as pieces of text.

Paper: Autoregressive Entity Retrieval (ICLR 2021).
Command: python -m launch.train --config=configs/genre_identifiers.py:DATASET --config.data_dir=DIR
The folder is --config.identifiers of configs/gensar.py:DATASET,genre, which makes the same ones
itself where it is given none. Both need the same `vocabulary`. Without a data set it is qilin, and
without a folder the embedded sample.
"""

from ml_collections import config_dict

from configs import choices, identifiers_at_once

DATASETS = {
    "amazon_beauty": {},
    "amazon_electronics": {"vocabulary.pieces": 32_000},
    "qilin": {"on_sample.overrides": {"vocabulary": {"pieces": 1500}}},
}
MODEL = {
    "most_tokens": 15,  # released, the end included
    "repeated": "numbered",  # ours: shops have equal titles; or "refused"
}


def method() -> config_dict.ConfigDict:
    """Returns what does not depend on the data set."""
    config = identifiers_at_once.method("genre_identifiers")
    config.model = config_dict.ConfigDict(MODEL)
    # A SentencePiece model, or how many pieces are trained: those of the run that reads the titles.
    config.vocabulary = config_dict.ConfigDict({"pieces_model": "", "pieces": 4000})
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("genre_identifiers", method(), choice, DATASETS)
