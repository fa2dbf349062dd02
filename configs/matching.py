"""The matching baselines of CRS's Table 2 in its harness: configs/matching.py:SYSTEM,DATASET.

Command: python -m launch.train --config=configs/matching.py:bm25,qilin (the embedded sample), or
--config=configs/matching.py:tfidf,amazon_beauty --config.data_dir=DIR
SYSTEM is bm25, tfidf or dense: the query against the items' texts, by words or by vectors.
`--config.model.vectors=NAME` takes a sentence-transformers model (the paper's: BGE).
"""

from ml_collections import config_dict

from configs import crs_amazon_beauty, crs_sample

_DATASETS = {"qilin": crs_sample, "amazon_beauty": crs_amazon_beauty}


def get_config(choice: str = "bm25,qilin") -> config_dict.ConfigDict:
    system, _, dataset = choice.partition(",")
    if dataset not in _DATASETS:
        raise ValueError(
            f"expected configs/matching.py:SYSTEM,DATASET with a data set of "
            f"{', '.join(_DATASETS)}, found {choice!r}"
        )
    crs = _DATASETS[dataset].get_config()
    config = config_dict.ConfigDict(
        {k: crs[k] for k in ("dataset", "data_dir", "cache_dir", "seed", "mesh", "data", "eval")}
    )
    config.method = "matching"
    config.model = config_dict.ConfigDict()
    config.model.system = system
    config.model.vectors = "tfidf_svd"  # of dense
    config.model.width = 128  # of its singular vectors
    if "on_sample" in crs:
        # The same searches are evaluated as of CRS on the sample.
        config.on_sample = crs.on_sample
        kept = {k: crs.on_sample.overrides[k].to_dict() for k in ("data", "eval")}
        config.on_sample.overrides = config_dict.ConfigDict(kept)
    return config
