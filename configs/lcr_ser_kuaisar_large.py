"""LCR-SER on KuaiSAR-large (19 days): both stages, split by time as in the paper's Table 1.

Command: as lcr_ser_kuaisar_small.py, with the larger set's files.
"""

from ml_collections import config_dict

from configs import datasets, lcr_ser_defaults


def get_config() -> config_dict.ConfigDict:
    config = datasets.kuaisar(lcr_ser_defaults.get_config())
    # ours: evaluated five times as often, because an epoch has twice the examples of the small set
    config.pretrain.evals_per_epoch = 5.0
    config.pretrain.max_epochs = 15.0
    return config
