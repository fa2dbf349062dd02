"""The matching baselines of CRS's Table 2, on CRS's own searches: configs/matching.py:KIND,DATASET.

Command: python -m launch.train --config=configs/matching.py:bm25,qilin (the embedded sample), or
--config=configs/matching.py:tfidf,amazon_beauty --config.data_dir=DIR
KIND: one of retrieval.py's; the paper has bm25, tfidf and dense (`--config.model.vectors=NAME` for
a sentence-transformers model such as BGE).
"""

from ml_collections import config_dict

from configs import crs_amazon_beauty, crs_sample, retrieval

_DATASETS = {"qilin": crs_sample, "amazon_beauty": crs_amazon_beauty}


def get_config(choice: str = "bm25,qilin") -> config_dict.ConfigDict:
    kind, _, dataset = choice.partition(",")
    if kind not in retrieval.KINDS or dataset not in _DATASETS:
        raise ValueError(
            f"expected configs/matching.py:KIND,DATASET with a kind of "
            f"{', '.join(retrieval.KINDS)} and a data set of {', '.join(_DATASETS)}, found "
            f"{choice!r}"
        )
    crs = _DATASETS[dataset].get_config()
    config = config_dict.ConfigDict(
        {k: crs[k] for k in ("dataset", "data_dir", "cache_dir", "seed", "mesh", "data", "eval")}
    )
    retrieval.method(config, kind)
    config.eval.search_protocols = ("catalogue",)
    if "on_sample" in crs:
        # The same searches are evaluated as of CRS on the sample.
        config.on_sample = crs.on_sample
        kept = {k: crs.on_sample.overrides[k].to_dict() for k in ("data", "eval")}
        config.on_sample.overrides = config_dict.ConfigDict(kept)
    return config
