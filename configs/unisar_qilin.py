"""UniSAR: Qilin, or the embedded sample.

Command: python -m launch.train --config=configs/unisar_qilin.py
"UniSAR" means the released settings, those for KuaiSAR.
"""

from ml_collections import config_dict

from configs import datasets, defaults


def method(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    config.method = "unisar"
    config.model = config_dict.ConfigDict()
    config.model.width = 32  # UniSAR, as all below except where noted
    config.model.hidden = 64
    config.model.layers = 1
    config.model.heads = 2
    config.model.dropout = 0.1
    config.model.init_scale = 0.1  # as LCR-SER's
    config.model.experts = 4
    config.model.expert_width = 64
    config.model.tower_widths = (128, 64, 200, 80)
    config.model.alignment_weight = 0.001
    config.model.alignment_temperature = 0.5
    config.model.alignment_pairs = 8192  # ours: the released code takes all of a batch
    config.model.transition_weight = 0.1
    config.model.transition_temperature = 0.1
    config.model.search_weight = 0.1
    return config


def get_config() -> config_dict.ConfigDict:
    return datasets.qilin(method(defaults.get_config()))
