"""Names configs/sasrec.py:amazon_beauty,ce: SASRec with the softmax on Amazon Beauty."""

from ml_collections import config_dict

from configs import sasrec


def get_config() -> config_dict.ConfigDict:
    return sasrec.get_config("amazon_beauty,ce")
