"""Holds what the configs of identifiers that are fitted at once, without training, share."""

from ml_collections import config_dict

from configs import defaults

# GenSAR's (configs/gensar.py).
SETS: dict[str, dict] = {
    "amazon_beauty": {},
    "amazon_electronics": {},
    "qilin": {"on_sample.overrides": {}},
}


def method(name: str) -> config_dict.ConfigDict:
    """Returns what does not depend on the data set, without the method's own settings."""
    config = defaults.get_config()
    config.method = name
    read = ("split", "segmenter", "use_search", "candidates_seed", "max_validation", "kept_events")
    unread = [f"data.{key}" for key in config.data if key not in (*read, "clicks")]
    defaults.without(config, "train", "eval", *unread)
    defaults.without(config, "loop.log_every", "loop.checkpoint_every")
    return config
