"""Builds settings from sections of a config, and refuses numbers that no run can use."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

from ml_collections import config_dict

from core.errors import UserError


def build(cls: type, values: dict[str, Any], *, section: str) -> Any:
    """Builds a settings dataclass from a config section.

    Raises:
      UserError: a value the dataclass refuses, or one it misses.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    try:
        return cls(**{key: value for key, value in values.items() if key in known})
    except (ValueError, TypeError) as error:
        raise UserError(f"config.{section}: {error}; see the config's defaults file") from None


def _value(config: config_dict.ConfigDict, key: str) -> Any:
    return functools.reduce(lambda section, name: section[name], key.split("."), config)


def positive(config: config_dict.ConfigDict, *keys: str) -> None:
    """Refuses sizes and counts with which a run could not go on.

    Args:
      keys: dotted, such as 'loop.log_every', of numbers that must be finite and above 0.

    Raises:
      UserError: one is not; names the key and the value.
    """
    for key in keys:
        value = _value(config, key)
        if not 0 < value < math.inf:
            raise UserError(f"expected config.{key} above 0, found {value}; set such a number")


def not_negative(config: config_dict.ConfigDict, *keys: str) -> None:
    """Refuses weights of the loss below 0, with which training would raise what it should lower.

    Args:
      keys: dotted, such as 'rl.clip_eps', of numbers that must be finite and 0 or more.

    Raises:
      UserError: one is not; names the key and the value.
    """
    for key in keys:
        value = _value(config, key)
        if not 0 <= value < math.inf:
            raise UserError(f"expected config.{key} of 0 or more, found {value}; set such a number")
