"""Resolves a config: whole paths, the sample's values where no data are given, values in range."""

from __future__ import annotations

import os
from collections.abc import Collection

from ml_collections import config_dict

from core.errors import UserError
from core.files import expanded
from core.workdir import check_mounted
from experiments import value_ranges

# Keys whose values are files or folders where they are not empty.
_PATHS = (
    *("identifiers", "model.checkpoint", "vocabulary.tokenizer", "vocabulary.pieces_model"),
    *("prompts.pseudo_queries", "semantic_ids.extend", "train.teacher"),
    *("distill.teacher", "distill.traces"),
)


def resolve(config: config_dict.ConfigDict, given: Collection[str] = ()) -> config_dict.ConfigDict:
    """Returns the config with whole paths, and the sample's values without a `data_dir`.

    A value set by hand wins over these: it is one that differs from the config file's
    (`on_sample.replaced`), or is named in `given`.

    Args:
      given: keys set on the command line, such as 'train.max_epochs'. From Python only a value
        that is set to what the config file has needs to be named here.

    Raises:
      UserError: no dataset; no data_dir, and the dataset has no embedded sample; an address as
        data_dir; a checkpoint of GenSAR without pieces; or as `experiments.value_ranges.check`.
    """
    config = config_dict.ConfigDict(config.to_dict())
    if not config.dataset:
        raise UserError(
            "expected a config that names its data set, found none in it; pass "
            "--config=configs/METHOD.py:DATASET or --config.dataset=NAME"
        )
    _make_absolute(config)
    own_pieces = config.method == "gensar" and config.model.checkpoint
    if own_pieces and not config.vocabulary.pieces_model:
        config.vocabulary.pieces_model = _pieces_of(config.model.checkpoint)
    if config.data_dir:
        check_mounted(config.data_dir, "config.data_dir")
        config.data_dir = expanded(config.data_dir, "config.data_dir")
    else:
        _fit_to_sample(config, given)
    if "on_sample" in config and "replaced" in config.on_sample:
        del config.on_sample["replaced"]  # of no use to a run
    value_ranges.check(config)
    return config


def _fit_to_sample(config: config_dict.ConfigDict, given: Collection[str]) -> None:
    if "on_sample" not in config:
        raise UserError(
            f"expected --config.data_dir=DIR with the files of {config.dataset}, found none; only "
            "configs with an `on_sample` block run on the embedded sample"
        )
    if "replaced" not in config.on_sample:
        return  # it was resolved before
    replaced = config.on_sample.replaced.to_dict()

    def untouched(section: str, key: str) -> bool:
        # What was not noted has come to the overrides after the file: it is meant.
        own, noted = config[section].get(key), replaced.get(section, {})
        return noted.get(key, own) == own

    fitting = [
        (section, key, value)
        for section, values in config.on_sample.overrides.items()
        for key, value in values.items()
        if f"{section}.{key}" not in given and untouched(section, key)
    ]
    for section, key, value in fitting:
        config[section][key] = value


def _make_absolute(config: config_dict.ConfigDict) -> None:
    """Makes paths whole, so that a run belongs to a file however and wherever it is called."""
    for key in _PATHS:
        section, _, name = key.rpartition(".")
        place = config.get(section) if section else config
        if place and place.get(name):
            place[name] = expanded(place[name], f"config.{key}")


def _pieces_of(checkpoint: str) -> str:
    """Returns the SentencePiece model in a T5 checkpoint's folder; its rows mean nothing with
    another.
    """
    path = os.path.join(checkpoint, "spiece.model")
    if not os.path.isfile(path):
        raise UserError(
            f"expected the checkpoint's SentencePiece model, found no {path}; put it there, or "
            "pass its path as --config.vocabulary.pieces_model"
        )
    return path
