"""LCR-SER on KuaiSAR-small (9 days): both stages, split by time as in the paper's Table 1.

Command: python -m launch.train --config=configs/lcr_ser_kuaisar_small.py --config.data_dir=DIR,
with DIR holding rec_inter.csv, src_inter.csv and item_features.csv, or what
`python -m launch.prepare_data --dataset=kuaisar --raw_dir=RAW --data_dir=DIR` made of them.
"""

from ml_collections import config_dict

from configs import datasets, lcr_ser_defaults


def get_config() -> config_dict.ConfigDict:
    return datasets.kuaisar(lcr_ser_defaults.get_config())
