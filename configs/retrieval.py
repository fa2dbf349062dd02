"""A floor of the search task on any data set: configs/retrieval.py:KIND,DATASET.

Command: python -m launch.train --config=configs/retrieval.py:bm25,amazon_beauty \
  --config.data_dir=DIR
KIND: bm25, tfidf, dense (texts); query_popularity, query_knn (training clicks after the query).
DATASET: a function of datasets.py.
"""

from ml_collections import config_dict

from configs import baseline, datasets, defaults

KINDS = ("bm25", "tfidf", "dense", "query_popularity", "query_knn")


def method(config: config_dict.ConfigDict, kind: str) -> config_dict.ConfigDict:
    """What does not depend on the data set."""
    config.method = "search_baseline"
    config.model = config_dict.ConfigDict()
    config.model.kind = kind
    if kind == "dense":
        # Singular vectors of the texts, or a sentence-transformers model.
        config.model.vectors = "tfidf_svd"
        config.model.width = 256  # of the singular vectors; ours
    if kind == "query_knn":
        config.model.decay = 0.6  # as in item_knn_qilin.py
        config.model.history_power = 0.5
        config.model.popularity_weight = 1.0
    return config


def get_config(choice: str = "") -> config_dict.ConfigDict:
    kind, _, dataset = choice.partition(",")
    if kind not in KINDS or dataset not in baseline.DATASETS:
        raise ValueError(
            f"expected configs/retrieval.py:KIND,DATASET with a kind of {', '.join(KINDS)} "
            f"and a data set of {', '.join(baseline.DATASETS)}, found {choice!r}"
        )
    config = getattr(datasets, dataset)(method(defaults.get_config(), kind))
    config.eval.search_protocols = ("bm25_99", "full")
    config.eval.validation_users = 1000  # GenSAR's, so that rows can be compared
    config.eval.test_users = 2000  # 0 for all
    return config
