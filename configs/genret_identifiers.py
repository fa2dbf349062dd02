"""Configures GenRet's identifiers: codes that a T5 learns to write items as, and to find them by.

Paper: Learning to Tokenize for Generative Retrieval (NeurIPS 2023).
Command: python -m launch.train --config=configs/genret_identifiers.py:DATASET --config.data_dir=DIR
The folder, which holds the T5 too, is --config.identifiers of configs/gensar.py:DATASET,genret,
which makes the same ones itself where it is given none (there the keys begin with
config.identifier_levels). Both need the same `vocabulary`, `prompts` and `model`. Without a data
set it is qilin, and without a folder the embedded sample.
"""

from ml_collections import config_dict

from configs import choices, identifiers_at_once

# Ours, for a sample of 750 items and minutes of a core.
ON_SAMPLE = {"levels": 2, "codes": 32, "batch_size": 64, "first_updates": 40, "updates": 120}
DATASETS = {
    "amazon_beauty": {},
    "amazon_electronics": {
        "vocabulary.pieces": 32_000,
        "model.size": "t5-small",
        "model.dtype": "bfloat16",
    },
    "qilin": {
        "on_sample.overrides": {
            "vocabulary": {"pieces": 1500},
            "model": {"size": "sample"},
            "levels": ON_SAMPLE,
        }
    },
}
# Released: .1, for a pre-trained T5. States of one from scratch differ by a tenth of their length,
# and dropout moves them by a third of it: contrast then learns nothing (docs/decisions.md).
DROPOUT_RATE = 0.0
LEVELS = {
    "levels": 3,  # released; a fourth code counts equal items
    "codes": 256,  # GenSAR's; released: 512
    "batch_size": 128,  # released
    # Of each place. Released: 1 or 10 epochs, then 200, of len(data) / 128 updates each.
    "first_updates": 200,  # ours
    "updates": 800,  # ours
    "evals": 2,  # over the latter
    # Released: 5e-4, constant, for a pre-trained T5. From scratch ours, a third of that of
    # configs/gensar.py (docs/decisions.md).
    "learning_rate": 1e-2,
    "relative_rate": True,
    "warmup": 0.05,
    "weight_decay": 1e-7,
    "clip_norm": 1.0,  # released
    "sinkhorn_iterations": 100,  # released
    "contrast": 0.5,  # released, as the next three
    "code": 0.5,
    "fixed": 0.5,
    "reconstruction": 0.1,
}


def method() -> config_dict.ConfigDict:
    """Returns what does not depend on the data set."""
    config = identifiers_at_once.method("genret_identifiers")
    config.loop.log_every = 20
    config.loop.checkpoint_every = 500
    config.levels = config_dict.ConfigDict(LEVELS)
    # These three as of configs/gensar.py:DATASET,genret.
    config.vocabulary = config_dict.ConfigDict({"pieces_model": "", "pieces": 4000})
    config.prompts = config_dict.ConfigDict(
        {
            "max_inputs": 256,
            "max_targets": 32,
            "behaviour_tokens": "none",
            "identifiers": "semantic",
            "search_without": "history",
            "phrasings": 10,
            "pseudo_queries": "",
        }
    )
    config.model = config_dict.ConfigDict(
        {"size": "cpu", "checkpoint": "", "dropout_rate": DROPOUT_RATE, "dtype": "float32"}
    )
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("genret_identifiers", method(), choice, DATASETS)
