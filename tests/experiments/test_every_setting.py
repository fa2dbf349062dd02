"""Every key of a config: whatever it is set to, resolving ends in one line or in a config."""

import functools
import json
import math

import pytest
from ml_collections import config_dict

from configs import crs, gensar, lcr_ser, popularity, retrieval, sasrec, unisar
from core import workdir
from core.errors import UserError
from experiments.resolve import resolve

CONFIGS = {
    "lcr_ser": lcr_ser,
    "sasrec": sasrec,
    "unisar": unisar,
    "gensar": gensar,
    "crs": crs,
    "popularity": popularity,
    "retrieval": retrieval,
}


@functools.cache
def resolved(name):
    return resolve(CONFIGS[name].get_config())


def changed(name, key, value):
    """The resolved config with a key set to a value of any kind."""
    values = resolved(name).to_dict()  # plain: a ConfigDict turns some kinds into others
    *sections, last = key.split(".")
    functools.reduce(lambda section, part: section[part], sections, values)[last] = value
    return config_dict.ConfigDict(values)


def end_of(config):
    """None where the config resolves, else the line that it ends in."""
    try:
        again = resolve(config)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    json.dumps(again.to_dict())
    return None


def others(value):
    """Values of other kinds than a setting's, and numbers that are none: each must be refused."""
    if isinstance(value, bool):
        return (3, 0.5, "yes", (True,), None, {"a": 1})
    if isinstance(value, int):
        return ("3", 1.5, math.nan, math.inf, True, (3,), None, {"a": 1}, 2**64)
    if isinstance(value, float):
        return ("0.5", math.nan, -math.inf, False, (0.5,), None, {"a": 1})
    if isinstance(value, str):
        return (3, 0.5, math.nan, True, ("a", 1), None, {"a": 1})
    assert isinstance(value, list | tuple)
    return (3, "a", math.nan, None, ({"a": 1},), (None,), (math.nan,), {"a": 1})


def keys(name):
    values = workdir.settings(resolved(name).to_dict())
    # What a run on the sample has instead was put into the sections before.
    return {key: v for key, v in values.items() if not key.startswith("on_sample.overrides.")}


EVERY = [(name, key) for name in CONFIGS for key in keys(name)]


@pytest.mark.parametrize(("name", "key"), EVERY, ids=lambda text: text)
def test_a_value_of_another_kind_is_refused(name, key):
    value = keys(name)[key]
    for other in others(value):
        if other is None and key == "data.search_filter":
            continue
        line = end_of(changed(name, key, other))
        # The data set, the method and where data lie are looked at first.
        assert line is not None and (f"config.{key}" in line or "data set" in line), (other, line)


# Texts that a config takes as they are: places and names, which are looked for later.
FREE = {
    *("cache_dir", "data_dir", "dataset", "eval.selection", "identifiers", "train.teacher"),
    *("train.teacher_stage", "distill.teacher", "distill.traces", "model.checkpoint"),
    *("semantic_ids.extend", "vocabulary.pieces_model", "vocabulary.tokenizer"),
    *("prompts.pseudo_queries", "vectors.semantic", "identifier_vectors.semantic"),
    "identifier_vectors.collaborative",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_words_that_are_not_known(name):
    for key, value in keys(name).items():
        if isinstance(value, str):
            line = end_of(changed(name, key, "no-such-word"))
            assert line is None or key.rpartition(".")[2] in line, (key, line)
            assert line is not None or key in FREE, key
        elif isinstance(value, list | tuple):
            line = end_of(changed(name, key, [*value, "no-such-word"]))
            assert line is not None and f"config.{key} " in line, (key, line)


# Numbers that may be below 0: what is left to the other axis, all examples of a task, all events.
BELOW_0 = ("mesh.", "mixture.", "data.kept_events")


@pytest.mark.parametrize(("name", "key"), EVERY, ids=lambda text: text)
def test_numbers_below_0_and_0(name, key):
    value = keys(name)[key]
    if isinstance(value, bool | str | list | tuple):
        return
    if not key.startswith(BELOW_0):
        assert f"config.{key} " in end_of(changed(name, key, -1)), key
    assert f"config.{key} " in end_of(changed(name, key, -2)), key
    zero = end_of(changed(name, key, 0))
    # Resolved, or refused by what names it, alone or with another.
    assert zero is None or key in zero or "config.data.train_negatives" in zero, zero
