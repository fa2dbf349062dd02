"""LCR-SER on Qilin: both stages, pre-training and GRPO.

Paper: Bridging Search and Recommendation through Latent Cross Reasoning (arXiv 2508.04152).
Command: python -m launch.train --config=configs/lcr_ser_qilin.py [--config.data_dir=DIR]
DIR holds the published folders search_train, search_test, recommendation_train and
recommendation_test. Without it the embedded sample (made up, in Qilin's file format) is used,
with the smaller sizes of `on_sample`, in under 5 minutes on 2 CPU cores.
"""

from ml_collections import config_dict

from configs import datasets, lcr_ser_defaults


def get_config() -> config_dict.ConfigDict:
    config = datasets.qilin(lcr_ser_defaults.get_config())
    config.on_sample.overrides.pretrain.lambda_l2 = 1e-6
    config.on_sample.overrides.rl = config_dict.ConfigDict({"examples": 5_000})
    return datasets.for_sample(config)
