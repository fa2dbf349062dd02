"""Configures the matching baselines of CRS's Table 2, on CRS's own searches.

Command: python -m launch.train --config=configs/matching.py:DATASET[,KIND] --config.data_dir=DIR
KIND: one of retrieval.py's; the paper has bm25, tfidf, bge and qwen3_embedding. `dsi` is GenSAR's
network on the query alone, trained.
Without a data set it is qilin, and without a folder the embedded sample.
"""

from ml_collections import config_dict

from configs import choices, crs, datasets, defaults, gensar, retrieval

DATASETS = crs.DATASETS
VARIANTS = retrieval.VARIANTS | {"dsi": {}}
_OF_DSI = tuple(dataset for dataset in DATASETS if dataset in gensar.DATASETS)


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    dataset, kind = choices.parse("matching", choice, choices.names(DATASETS), VARIANTS)
    if kind == "dsi":
        choices.parse("matching", choice, _OF_DSI, ("dsi",))
        return _dsi(dataset)
    searches = crs.get_config(dataset)
    config = config_dict.ConfigDict(
        {
            key: searches[key]
            for key in ("dataset", "data_dir", "cache_dir", "seed", "mesh", "data", "eval")
        }
    )
    config.method = "search_baseline"
    # Of CRS's own settings nothing is read.
    shared = defaults.get_config().data
    own = [f"data.{key}" for key in config.data if key not in shared]
    defaults.without(config, "eval.beam", *own)
    config.data.rec_length = shared.rec_length  # of query_knn
    config.loop = config_dict.ConfigDict({"writers": searches.loop.writers})
    config.model = config_dict.ConfigDict()
    for key, value in VARIANTS[kind].items():
        config.model[key.removeprefix("model.")] = value
    if "on_sample" in searches:
        # The same searches are evaluated as of CRS on the sample.
        config.on_sample = searches.on_sample
        of_searches = {
            section: {
                key: value
                for key, value in searches.on_sample.overrides[section].items()
                if key in config[section]
            }
            for section in ("data", "eval")
        }
        config.on_sample.overrides = config_dict.ConfigDict(of_searches)
        datasets.for_sample(config)
    return config


def _dsi(dataset: str) -> config_dict.ConfigDict:
    """Returns GenSAR's DSI on the users and with the beam of CRS."""
    searches, config = crs.get_config(dataset), gensar.get_config(f"{dataset},dsi")
    config.data.split = searches.data.split
    users = ("validation_users", "test_users")
    for key in (*users, "beam", "selection"):
        config.eval[key] = searches.eval[key]
    if "on_sample" in searches:
        config.on_sample.users = searches.on_sample.users
        theirs = searches.on_sample.overrides.eval
        for key in users:
            config.on_sample.overrides.eval[key] = theirs.get(key, searches.eval[key])
        datasets.for_sample(config)
    config.eval.search_protocols = ("catalogue",)
    return config
