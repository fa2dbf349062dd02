"""Resolves a config: whole paths, the sample's values where no data are given, values in range."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import config_dict

from core.errors import UserError
from core.object_store import whole_place
from core.settings import places
from core.workdir import check_mounted
from experiments.methods import experiment_class


def resolve(config: config_dict.ConfigDict, given: Collection[str] = ()) -> config_dict.ConfigDict:
    """Returns the config with whole paths, and the sample's values without a `data_dir`.

    A value set by hand wins over these: it is one that differs from the config file's
    (`on_sample.replaced`), or is named in `given`.

    Args:
      given: keys set on the command line, such as 'train.max_epochs'. From Python only a value
        that is set to what the config file has needs to be named here.

    Raises:
      UserError: no dataset; no data_dir, and the dataset has no embedded sample; or as
        `core.experiment.Experiment.check_settings` and `completed`.
    """
    config = config_dict.ConfigDict(config.to_dict())
    if not config.get("dataset"):
        raise UserError(
            "expected a config that names its data set, found none in it; pass "
            "--config=configs/METHOD.py:DATASET or --config.dataset=NAME"
        )
    experiment = experiment_class(config)
    if not config.get("data_dir"):
        _fit_to_sample(config, given)
    if "replaced" in config.get("on_sample", ()):
        del config.on_sample["replaced"]  # of no use to a run
    experiment.check_settings(config)
    # So a run belongs to a file however and wherever it is called.
    for key, is_run in places(config, experiment.sections(config)):
        section, _, name = key.rpartition(".")
        part = config[section] if section else config
        if not is_run:
            check_mounted(part[name], f"config.{key}")
        part[name] = part[name] and whole_place(part[name], f"config.{key}")
    if config.data_dir:
        config.data_dir = whole_place(config.data_dir, "config.data_dir")
    return experiment.completed(config)


def _fit_to_sample(config: config_dict.ConfigDict, given: Collection[str]) -> None:
    if "on_sample" not in config:
        raise UserError(
            f"expected --config.data_dir=DIR with the files of {config.dataset}, found none; only "
            "configs with an `on_sample` block run on the embedded sample"
        )
    is_section = isinstance(config.on_sample, config_dict.ConfigDict)
    sample = config.on_sample.to_dict() if is_section else {}
    overrides: Any = sample.get("overrides")
    replaced: Any = sample.get("replaced")
    if not _are_sections(overrides) or not _are_sections(replaced):
        return  # it was resolved before, or the check of its settings will tell

    def untouched(section: str, key: str) -> bool:
        # What was not noted has come to the overrides after the file: it is meant.
        own, noted = config[section].get(key), replaced.get(section, {})
        return noted.get(key, own) == own

    for section, values in overrides.items():
        if not isinstance(config.get(section), config_dict.ConfigDict):
            raise UserError(
                f"expected sections of the config in config.on_sample.overrides, found "
                f"{section!r}; leave it out"
            )
        for key, value in values.items():
            if f"{section}.{key}" not in given and untouched(section, key):
                _put(config[section], key, value)


def _put(section: config_dict.ConfigDict, key: str, value: Any) -> None:
    try:
        section[key] = value
    except TypeError:  # what all settings are checked for tells it better
        with section.ignore_type():
            section[key] = value


def _are_sections(values: Any) -> bool:
    return isinstance(values, Mapping) and all(isinstance(v, Mapping) for v in values.values())
