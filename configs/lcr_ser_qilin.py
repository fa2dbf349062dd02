"""LCR-SER on Qilin: both stages, pre-training and GRPO.

Paper: Bridging Search and Recommendation through Latent Cross Reasoning (arXiv 2508.04152).
Command: python -m launch.train --config=configs/lcr_ser_qilin.py [--config.data_dir=DIR]
DIR holds the published folders search_train, search_test, recommendation_train and
recommendation_test. Without it the embedded sample (made up, in Qilin's file format) is used,
with the smaller sizes of `on_sample`, in under 5 minutes on 2 CPU cores.
"""

from ml_collections import config_dict

from configs import lcr_ser_defaults


def get_config() -> config_dict.ConfigDict:
    config = lcr_ser_defaults.get_config()
    config.dataset = "qilin"
    # What replaces the settings above where data_dir is empty.
    config.on_sample = config_dict.ConfigDict()
    config.on_sample.users = 3000
    config.on_sample.seed = 0  # of the generator; the run's own seed is another
    config.on_sample.shuffle_searches = False  # True: searches handed to other users, a control
    config.on_sample.overrides = config_dict.ConfigDict(
        {
            "data": {"rec_length": 20, "search_length": 20, "words": 6, "clicks": 2},
            "pretrain": {
                "batch_size": 128,
                "max_epochs": 6.0,
                "learning_rate": 2e-3,
                "lambda_l2": 1e-6,
            },
            "rl": {"examples": 5_000},
        }
    )
    return config
