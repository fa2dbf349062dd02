"""GRU4Rec with the softmax over all items: Qilin, or the embedded sample.

Command: python -m launch.train --config=configs/gru4rec_qilin.py
"""

from ml_collections import config_dict

from configs import datasets, defaults


def method(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    config.method = "gru4rec"
    config.model = config_dict.ConfigDict()
    config.model.width = 64
    config.model.hidden = 64
    config.model.dropout = 0.2
    config.model.init_scale = 0.02
    config.model.loss = "full_cross_entropy"
    config.pretrain.lambda_l2 = 0.0
    config.pretrain.table_update = "dense"
    return config


def get_config() -> config_dict.ConfigDict:
    return datasets.qilin(method(defaults.get_config()))
