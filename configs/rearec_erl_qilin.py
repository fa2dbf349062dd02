"""ReaRec, ensemble reasoning learning: Qilin, or the embedded sample.

Command: python -m launch.train --config=configs/rearec_erl_qilin.py
"ReaRec" means the released code's defaults; sizes of the backbone are those of sasrec_qilin.py.
"""

from ml_collections import config_dict

from configs import datasets, defaults, sasrec_ce_qilin


def of_variant(config: config_dict.ConfigDict, variant: str) -> config_dict.ConfigDict:
    """What both variants, 'erl' and 'prl', have in common."""
    config = sasrec_ce_qilin.method(config)
    config.method = "rearec"
    del config.model.loss  # always the softmax over all items
    config.model.variant = variant
    config.model.reasoning_steps = 2  # ReaRec
    config.model.temperature = 0.07  # ReaRec
    return config


def method(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    config = of_variant(config, "erl")
    config.model.kl_weight = 0.05  # ReaRec
    return config


def get_config() -> config_dict.ConfigDict:
    return datasets.qilin(method(defaults.get_config()))
