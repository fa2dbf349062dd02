"""What depends on the data set alone; every method's config for it starts here."""

from typing import Any

from ml_collections import config_dict

# The data sets that every method which ranks items takes; a file adds what one changes for it.
EVERY: dict[str, dict[str, Any]] = {
    "amazon_beauty": {},
    "amazon_raw": {},
    "csv_log": {},
    "kuaisar": {},
    "qilin": {},
    "trivago": {},
    "unisar_pickles": {},
}


def amazon_beauty(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """sequences.tsv, items.jsonl and queries.tsv in data_dir."""
    config.dataset = "amazon_beauty"
    config.data.clicks = 1  # a semi-synthetic search has the one bought item
    return config


def amazon_raw(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """reviews, meta, query and qrels files of one category in data_dir."""
    config.dataset = "amazon_raw"
    config.data.clicks = 1  # a semi-synthetic search has the one bought item (UniSAR)
    return config


def amazon_electronics(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Takes the files of amazon_raw, those of the category Electronics."""
    return amazon_raw(config)


def csv_log(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Takes clicks.csv, searches.csv and, for items nobody has clicked, items.csv in data_dir."""
    config.dataset = "csv_log"
    config.data.columns = ""  # other names of columns, such as "user=user_id,session="
    config.data.time_unit = "infer"  # or "seconds", "milliseconds", ..., "positions"
    return config


def qilin(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Takes the published parquet folders in data_dir; without it the embedded sample."""
    config.dataset = "qilin"
    # What replaces the settings above where data_dir is empty.
    config.on_sample = config_dict.ConfigDict()
    config.on_sample.users = 3000
    config.on_sample.seed = 0  # of the generator; the run's own seed is another
    config.on_sample.shuffle_searches = False  # True: searches handed to other users, a control
    config.on_sample.hops = False  # True: the sample whose users need 0 to 4 steps of reasoning
    config.on_sample.overrides = config_dict.ConfigDict(
        {"data": {"rec_length": 20, "search_length": 20, "words": 6, "clicks": 2}}
    )
    if "train" in config:
        config.on_sample.overrides.train = config_dict.ConfigDict(
            {"batch_size": 128, "max_epochs": 6.0, "learning_rate": 2e-3}
        )
    return for_sample(config)


def hard_sample(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Takes the embedded sample whose searches need a chain of facts; qilin's reader reads it."""
    config = qilin(config)
    config.on_sample.users = 2000
    config.on_sample.refinements = True
    return config


def for_sample(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Notes the values that `on_sample.overrides` replaces; a config file ends with it.

    So `experiments.resolve.resolve` tells them from values set by hand, which stay.
    """
    config.on_sample.replaced = config_dict.ConfigDict()
    for section, values in config.on_sample.overrides.items():
        own = config.get(section, {})
        config.on_sample.replaced[section] = {name: own[name] for name in values if name in own}
    return config


def trivago(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """The parquet files of trivago's sessions (RecSys Challenge 2019) in data_dir."""
    config.dataset = "trivago"
    config.data.clicks = 1  # a search is that of one click-out
    return config


def unisar_pickles(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """The folders vocab and dataset of UniSAR's published data in data_dir, KuaiSAR or Amazon."""
    config.dataset = "unisar_pickles"
    config.data.split = "published"
    config.data.words = 50  # UniSAR
    _of_kuaisar(config, ("published99",))
    return config


def kuaisar(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """rec_inter.csv, src_inter.csv and item_features.csv in data_dir, small or large."""
    config.dataset = "kuaisar"
    config.data.split = "global_time"  # LCR-SER 4.1.1: chronologically
    # One target in ten of millions ranked against millions of items is days; the paper's 99 do.
    _of_kuaisar(config, ("neg99",))
    return config


def _of_kuaisar(config: config_dict.ConfigDict, protocols: tuple[str, ...]) -> None:
    """Sets what methods that train, or that recommend, have on KuaiSAR."""
    if "train" in config:
        config.train.lambda_l2 = 3e-5  # UniSAR on KuaiSAR
    if "protocols" in config.eval:
        config.eval.protocols = protocols


def kuaisar_large(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Takes the files of kuaisar, those of its 19 days."""
    return kuaisar(config)
