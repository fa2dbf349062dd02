"""Names any baseline on any data set: configs/baseline.py:METHOD,DATASET is METHOD.py:DATASET.

METHOD may also name a variant: sasrec_ce, rearec_erl, cl4srec_bce, query_seqrec_bce.
"""

import importlib
from typing import Any

from ml_collections import config_dict

from configs import choices, datasets

_VARIANTS = {
    "cl4srec_bce": ("cl4srec", "bce"),
    "fmlp_rec_ce": ("fmlp_rec", "ce"),
    "jsr_tuned": ("jsr", "tuned"),
    "lares_bce": ("lares", "bce"),
    "lares_rl": ("lares", "rl"),
    "lrurec_bce": ("lrurec", "bce"),
    "nrhub_ce": ("nrhub", "ce"),
    "query_seqrec_bce": ("query_seqrec", "bce"),
    "rearec_erl": ("rearec", "erl"),
    "rearec_prl": ("rearec", "prl"),
    "sasrec_ce": ("sasrec", "ce"),
    "sesrec_tuned": ("sesrec", "tuned"),
    "unified_ssr_tuned": ("unified_ssr", "tuned"),
    "unisar_tuned": ("unisar", "tuned"),
    "user_tuned": ("user", "tuned"),
}
METHODS = (
    "bert4rec",
    "cl4srec",
    "cl4srec_bce",
    "copps",
    "fmlp_rec",
    "fmlp_rec_ce",
    "gru4rec",
    "item_knn",
    "jsr",
    "jsr_tuned",
    "lares",
    "lares_bce",
    "lares_rl",
    "lrurec",
    "lrurec_bce",
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
    "sesrec_tuned",
    "tem",
    "unified_ssr",
    "unified_ssr_tuned",
    "unisar",
    "unisar_tuned",
    "user",
    "user_tuned",
)


def get_config(choice: str = "") -> config_dict.ConfigDict:
    method, _, dataset = choice.partition(",")
    if method not in METHODS or dataset not in datasets.EVERY:
        raise ValueError(
            f"expected configs/baseline.py:METHOD,DATASET with a method of {', '.join(METHODS)} "
            f"and a data set of {', '.join(datasets.EVERY)}, found {choice!r}"
        )
    module, variant = file_of(method)
    return module.get_config(choices.choice_of(dataset, variant))


def file_of(method: str) -> tuple[Any, str]:
    """Returns the module of a method's config file, and the variant that it is of it."""
    file, variant = _VARIANTS.get(method, (method, ""))
    return importlib.import_module(f"configs.{file}"), variant
