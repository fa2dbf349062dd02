"""Configures a floor of the search task, on GenSAR's searches: matching texts, or clicks.

Command: python -m launch.train --config=configs/retrieval.py:DATASET[,KIND] --config.data_dir=DIR
KIND: bm25, tfidf, dense (texts); query_popularity, query_knn (training clicks after the query).
matching.py has the same on CRS's searches.
"""

from ml_collections import config_dict

from configs import choices, datasets, defaults

DATASETS = datasets.EVERY
VARIANTS = {
    "bm25": {"model.kind": "bm25"},
    "tfidf": {"model.kind": "tfidf"},
    "dense": {
        "model.kind": "dense",
        # Singular vectors of the texts, or a sentence-transformers model.
        "model.vectors": "tfidf_svd",
        "model.width": 256,  # of the singular vectors; ours
    },
    "query_popularity": {"model.kind": "query_popularity"},
    "query_knn": {
        "model.kind": "query_knn",
        "model.decay": 0.6,  # as in item_knn.py
        "model.history_power": 0.5,
        "model.popularity_weight": 1.0,
    },
}


def method() -> config_dict.ConfigDict:
    """Returns what depends neither on the data set nor on the kind."""
    config = defaults.get_config()
    config.method = "search_baseline"
    defaults.without(
        config,
        *("train", "eval.protocols", "eval.full_batch_size"),
        *("loop.log_every", "loop.checkpoint_every"),
    )
    config.model = config_dict.ConfigDict()
    config.eval.search_protocols = ("bm25_99", "full")
    config.eval.validation_users = 1000  # GenSAR's, so that rows can be compared
    config.eval.test_users = 2000  # 0 for all
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("retrieval", method(), choice, DATASETS, VARIANTS)
