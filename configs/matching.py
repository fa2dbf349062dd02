"""The matching baselines of CRS's Table 2, on CRS's own searches: configs/matching.py:KIND,DATASET.

Command: python -m launch.train --config=configs/matching.py:bm25,qilin (the embedded sample), or
--config=configs/matching.py:tfidf,amazon_beauty --config.data_dir=DIR (or trivago, without dsi)
KIND: one of retrieval.py's; the paper has bm25, tfidf and dense (`--config.model.vectors=NAME` for
a sentence-transformers model such as BGE). `dsi` is GenSAR's network on the query alone, trained.
"""

from ml_collections import config_dict

from configs import (
    crs_amazon_beauty,
    crs_sample,
    crs_trivago_100k,
    datasets,
    defaults,
    gensar_amazon_beauty,
    gensar_qilin,
    retrieval,
)

_DATASETS = {
    "qilin": crs_sample,
    "amazon_beauty": crs_amazon_beauty,
    "trivago": crs_trivago_100k,
}
_GENSAR = {"qilin": gensar_qilin, "amazon_beauty": gensar_amazon_beauty}
_DSI = "dsi"


def _dsi(dataset: str, crs: config_dict.ConfigDict) -> config_dict.ConfigDict:
    config = _GENSAR[dataset].get_config(_DSI)
    config.data.split = crs.data.split
    users = ("validation_users", "test_users")
    for key in (*users, "beam", "selection"):
        config.eval[key] = crs.eval[key]
    if "on_sample" in crs:
        config.on_sample.users = crs.on_sample.users
        theirs = crs.on_sample.overrides.eval
        for key in users:
            config.on_sample.overrides.eval[key] = theirs.get(key, crs.eval[key])
        datasets.for_sample(config)
    return config


def get_config(choice: str = "bm25,qilin") -> config_dict.ConfigDict:
    kind, _, dataset = choice.partition(",")
    kinds = (*retrieval.KINDS, _DSI)
    known = _GENSAR if kind == _DSI else _DATASETS
    if kind not in kinds or dataset not in known:
        raise ValueError(
            f"expected configs/matching.py:KIND,DATASET with a kind of {', '.join(kinds)} and "
            f"a data set of {', '.join(known)}, found {choice!r}"
        )
    crs = _DATASETS[dataset].get_config()
    if kind == _DSI:
        config = _dsi(dataset, crs)
        config.eval.search_protocols = ("catalogue",)
        return config
    config = config_dict.ConfigDict(
        {k: crs[k] for k in ("dataset", "data_dir", "cache_dir", "seed", "mesh", "data", "eval")}
    )
    config.data.rec_length = defaults.get_config().data.rec_length  # of query_knn
    retrieval.method(config, kind)
    if "on_sample" in crs:
        # The same searches are evaluated as of CRS on the sample.
        config.on_sample = crs.on_sample
        kept = {k: crs.on_sample.overrides[k].to_dict() for k in ("data", "eval")}
        config.on_sample.overrides = config_dict.ConfigDict(kept)
        datasets.for_sample(config)
    return config
