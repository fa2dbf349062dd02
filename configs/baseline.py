"""Names any baseline on any data set: configs/baseline.py:METHOD,DATASET is METHOD.py:DATASET.

METHOD may also name a variant: sasrec_ce, rearec_erl, query_seqrec_bce and so on.
"""

import importlib

from ml_collections import config_dict

from configs import choices, datasets

_VARIANTS = {
    "nrhub_ce": ("nrhub", "ce"),
    "query_seqrec_bce": ("query_seqrec", "bce"),
    "rearec_erl": ("rearec", "erl"),
    "rearec_prl": ("rearec", "prl"),
    "sasrec_ce": ("sasrec", "ce"),
}
METHODS = (
    "bert4rec",
    "copps",
    "gru4rec",
    "item_knn",
    "jsr",
    "nrhub",
    "nrhub_ce",
    "popularity",
    "qem",
    "query_seqrec",
    "query_seqrec_bce",
    "rearec_erl",
    "rearec_prl",
    "sasrec",
    "sasrec_ce",
    "sesrec",
    "tem",
    "unified_ssr",
    "unisar",
    "user",
)


def get_config(choice: str = "") -> config_dict.ConfigDict:
    method, _, dataset = choice.partition(",")
    if method not in METHODS or dataset not in datasets.EVERY:
        raise ValueError(
            f"expected configs/baseline.py:METHOD,DATASET with a method of {', '.join(METHODS)} "
            f"and a data set of {', '.join(datasets.EVERY)}, found {choice!r}"
        )
    file, variant = _VARIANTS.get(method, (method, ""))
    module = importlib.import_module(f"configs.{file}")
    return module.get_config(choices.choice_of(dataset, variant))
