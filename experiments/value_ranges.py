"""Checks what a config's values must be whatever its method, where it is resolved.

What depends on a method, or on other settings, its experiment looks at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ml_collections import config_dict

from core.errors import UserError
from core.workdir import settings

# Keys, what a message calls their range, and the range. A config need not have a key.
_RANGES: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool]], ...] = (
    (
        (
            *("data.max_validation", "on_sample.users"),
            *("model.width", "model.ffn_width", "model.heads", "model.hidden", "model.init_scale"),
            *("model.experts", "model.expert_width", "model.alignment_pairs"),
        ),
        "above 0",
        lambda value: value > 0,
    ),
    (
        (
            *("data.rec_length", "data.search_length", "data.words", "data.clicks"),
            *("data.train_negatives", "data.history", "data.unclicked", "data.train_examples"),
            *("model.layers", "train.min_learning_rate", "train.plateau_patience"),
            *("train.stop_patience", "eval.validation_users", "eval.test_users"),
            *("evolve.iterations", "evolve.corpus", "evolve.rl_sample"),
        ),
        "of 0 or more",
        lambda value: value >= 0,
    ),
    (("data.kept_events",), "of -1 (all), 0 or more", lambda value: value >= -1),
    (
        ("seed", "data.candidates_seed", "on_sample.seed"),
        # What scikit-learn and JAX take alike, and a sweep can count on from.
        "of whole numbers from 0 to 2147483647",
        lambda seed: isinstance(seed, int) and 0 <= seed < 2**31,
    ),
    # At a rate of 1 nothing is left to scale up.
    (("model.dropout", "model.dropout_rate"), "from 0 to below 1", lambda rate: 0 <= rate < 1),
    (
        ("train.user_dropout", "train.plateau_factor"),
        "from 0 to 1",
        lambda share: 0 <= share <= 1,
    ),
    (
        ("model.mlp_widths", "model.tower_widths"),
        "with widths above 0",
        lambda widths: all(width > 0 for width in widths),
    ),
)
_PROTOCOLS = ("eval.protocols", "eval.search_protocols")
_LISTS = ("eval.metrics", *_PROTOCOLS)


def check(config: config_dict.ConfigDict) -> None:
    """Finds values that no method can train with, before data are read or anything is written.

    Raises:
      UserError: a number that is not finite or out of its range, no metric or protocol, or one
        that is named twice.
    """
    values = settings(config.to_dict())
    for key, value in values.items():
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"expected a finite config.{key}, found {number}; correct it")
    for keys, words, fits in _RANGES:
        for key in keys:
            if key in values and not _fits(fits, values[key]):
                raise UserError(
                    f"expected config.{key} {words}, found {values[key]}; set such a value"
                )
    for key, value in values.items():
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, int) and abs(number) >= 2**63:
                raise UserError(f"expected config.{key} of 64 bits, found {number}; correct it")
    for keys in (("eval.metrics",), _PROTOCOLS):
        known = [key for key in keys if key in values]
        if known and not any(values[key] for key in known):
            raise UserError(
                f"expected names in config.{known[0]}, found none; name some, or leave those of "
                "the config file"
            )
    for key in _LISTS:
        given = values.get(key, ())
        if not isinstance(given, list | tuple):
            raise UserError(f"expected names in config.{key}, found {given!r:.60}; set a list")
        names = list(given)
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(
                f"expected each of config.{key} once, found {twice!r} {names.count(twice)} times; "
                "leave the others out"
            )


def _fits(fits: Callable[[Any], bool], value: Any) -> bool:
    try:
        return bool(fits(value))
    except TypeError:  # a config.json may hold anything
        return False
