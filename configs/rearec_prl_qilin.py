"""ReaRec, progressive reasoning learning: Qilin, or the embedded sample.

Command: python -m launch.train --config=configs/rearec_prl_qilin.py
"ReaRec" means the released code's defaults; sizes of the backbone are those of sasrec_qilin.py.
"""

from ml_collections import config_dict

from configs import datasets, defaults, rearec_erl_qilin


def method(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    config = rearec_erl_qilin.of_variant(config, "prl")
    config.model.temperature_decay = 5.0  # ReaRec
    config.model.progressive_weight = 1.0  # ReaRec
    config.model.contrastive_weight = 1.0  # ReaRec
    config.model.noise = 0.01  # ReaRec
    return config


def get_config() -> config_dict.ConfigDict:
    return datasets.qilin(method(defaults.get_config()))
