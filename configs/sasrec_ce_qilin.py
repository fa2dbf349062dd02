"""SASRec with the softmax over all items: Qilin, or the embedded sample.

Command: python -m launch.train --config=configs/sasrec_ce_qilin.py
"""

from ml_collections import config_dict

from configs import datasets, defaults, sasrec_qilin


def method(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    config = sasrec_qilin.method(config)
    config.model.loss = "full_cross_entropy"
    config.pretrain.table_update = "dense"
    return config


def get_config() -> config_dict.ConfigDict:
    return datasets.qilin(method(defaults.get_config()))
