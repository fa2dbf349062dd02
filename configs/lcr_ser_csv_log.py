"""LCR-SER on your own log: CSV or parquet in the schema of input_pipelines/readers/csv_log.py.

Command: python -m launch.train --config=configs/lcr_ser_csv_log.py --config.data_dir=DIR, with DIR
holding clicks.csv, searches.csv and, for items nobody has clicked, items.csv.
"""

from ml_collections import config_dict

from configs import datasets, lcr_ser_defaults


def get_config() -> config_dict.ConfigDict:
    return datasets.csv_log(lcr_ser_defaults.get_config())
