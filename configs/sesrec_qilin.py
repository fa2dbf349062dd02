"""SESRec: Qilin, or the embedded sample.

Command: python -m launch.train --config=configs/sesrec_qilin.py
"SESRec" means the released settings, where its two data sets differ those of the commercial one.
"""

from ml_collections import config_dict

from configs import datasets, defaults


def method(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    config.method = "sesrec"
    config.model = config_dict.ConfigDict()
    config.model.width = 32  # as UniSAR's
    config.model.hidden = 64
    config.model.layers = 1  # SESRec
    config.model.heads = 2  # SESRec on its commercial set
    config.model.dropout = 0.1  # SESRec
    config.model.init_scale = 0.1  # as LCR-SER's
    config.model.mlp_widths = (200, 80)  # SESRec
    config.model.alignment_weight = 0.1  # SESRec
    config.model.alignment_temperature = 0.1  # SESRec
    config.model.alignment_pairs = 8192  # ours: the released code takes all of a batch
    config.model.triplet_weight = 0.001  # SESRec
    config.model.margin = 0.1  # SESRec
    return config


def get_config() -> config_dict.ConfigDict:
    return datasets.qilin(method(defaults.get_config()))
