"""Configures a model like CoPPS, in our reading of it: lcrsr/baselines/copps.py.

It answers searches alone.

Command: python -m launch.train --config=configs/copps.py:DATASET --config.data_dir=DIR
Without a data set it is qilin, and without a folder the embedded sample.
"TEM" means the released settings of TEM, as its README has them; "ours" that no paper gives the
value, and that it was not tuned.
"""

from ml_collections import config_dict

from configs import choices, datasets, defaults

DATASETS = datasets.EVERY | {
    "amazon_beauty": {"train.batch_size": 256},  # as LCR-SER's there
    # As recommenders there: whole catalogues take days.
    "kuaisar": {"eval.search_protocols": ("neg99",)},
    "unisar_pickles": {"eval.search_protocols": ("neg99",)},
}


def method() -> config_dict.ConfigDict:
    """Returns what does not depend on the data set."""
    config = defaults.get_config()
    config.method = "copps"
    defaults.without(config, "eval.protocols")
    config.data.train_negatives = 5  # TEM
    config.model = config_dict.ConfigDict()
    config.model.width = 128  # TEM, as all below except where noted
    config.model.length = 20
    config.model.layers = 1
    config.model.heads = 8
    config.model.inner = 512
    config.model.dropout = 0.1
    config.model.init_scale = 0.1  # as UniSAR's
    config.model.loss = "bce"
    config.model.contrastive_weight = 0.1  # ours, as CL4SRec's re-implementations
    config.model.temperature = 1.0  # ours, as there
    config.model.hide = 0.3  # ours, as there
    config.model.reorder = 0.6  # ours, as there
    config.train.learning_rate = 5e-4
    config.train.lambda_l2 = 0.0
    config.eval.search_protocols = ("neg99", "full")
    config.eval.selection = "ndcg@5/search/neg99"
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("copps", method(), choice, DATASETS)
