"""CRS on trivago's sessions: typed searches and filters, places, what was shown and not clicked.

Paper: Towards Context-aware Reasoning-enhanced Generative Searching in E-commerce.
Command: python -m launch.train --config=configs/crs_trivago_100k.py --config.data_dir=DIR \
  --config.model.checkpoint=Q, with DIR holding the parquet files, and Q a folder of Qwen3-0.6B.
Without Q the network starts from scratch with a tokenizer of its own.
Few of the hotels are seen by more than one user, so that ranking the whole catalogue says little
here; `search/impressions` ranks the hotels that the search has shown.
"""

from ml_collections import config_dict

from configs import crs_sample, datasets, defaults


def get_config() -> config_dict.ConfigDict:
    config = datasets.trivago(crs_sample.method(defaults.get_config()))
    config.eval.search_protocols = ("catalogue", "impressions")
    config.eval.selection = "ndcg@10/search/impressions"
    return config
