"""LCR-SER on UniSAR's published split and negatives, for figures beside UniSAR's own: both stages.

Command: python -m launch.train --config=configs/lcr_ser_unisar_pickles.py --config.data_dir=DIR,
with DIR the folder KuaiSAR or Amazon of UniSAR's data, vocab and dataset in it.
"""

from ml_collections import config_dict

from configs import datasets, lcr_ser_defaults


def get_config() -> config_dict.ConfigDict:
    return datasets.unisar_pickles(lcr_ser_defaults.get_config())
