"""SASRec with binary cross-entropy, as published: Qilin, or the embedded sample.

Command: python -m launch.train --config=configs/sasrec_qilin.py
"""

from ml_collections import config_dict

from configs import datasets, defaults


def method(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    config.method = "sasrec"
    config.model = config_dict.ConfigDict()
    config.model.width = 64
    config.model.layers = 2  # the paper
    config.model.heads = 2
    config.model.dropout = 0.2  # the paper: .2 on dense sets, .5 on sparse
    config.model.init_scale = 0.02
    config.model.loss = "bce"  # the paper
    config.pretrain.lambda_l2 = 0.0
    return config


def get_config() -> config_dict.ConfigDict:
    return datasets.qilin(method(defaults.get_config()))
