"""Settings of a wrong kind or range are refused in one line that names their key."""

import dataclasses
import math
from typing import Annotated

import numpy as np
import pytest
from ml_collections import config_dict

from core import settings
from core.errors import UserError
from core.settings import Count, NamesOnce, Place, RunPlace, Section, Settings, Share, build, one_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network(Settings):
    width: Count
    heads: Count = 1
    dropout: Share = 0.0
    loss: Annotated[str, one_of("bce", "ce")] = "bce"
    names: Annotated[tuple[str, ...], NamesOnce(least=1)] = ("a",)
    depth: Count | None = None
    file: Place = ""
    run: RunPlace = ""

    def check(self) -> None:
        self.check_divisible("width", by="heads")


def test_settings_without_a_config():
    assert Network(width=8, names=["a", "b"]).names == ("a", "b")
    assert Network(width=np.int64(8), dropout=np.float32(0.5)).width == 8
    for given, words in (
        ({"width": 0}, "^expected width above 0, found 0; set such a value$"),
        ({"width": 8, "heads": 3}, "^expected width divisible by heads, found 8/3$"),
        ({"width": 8, "loss": "mse"}, "^expected loss of bce, ce, found 'mse'; set one of them$"),
    ):
        with pytest.raises(ValueError, match=words):
            Network(**given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"width": "8"}, "expected config.model.width above 0, found '8'; set a whole number"),
        ({"width": np.int64(8)}, "expected config.model.width above 0, found 8; set a whole"),
        ({"width": True}, "expected config.model.width above 0, found True; set a whole number"),
        ({"width": 2**63}, "expected config.model.width of 64 bits"),
        ({"width": 10**400}, "expected config.model.width of 64 bits"),
        ({"dropout": 10**400}, "expected config.model.dropout from 0 to 1, found 1000"),
        ({"dropout": math.nan}, "expected a finite config.model.dropout, found nan; correct it"),
        ({"dropout": 1.5}, "expected config.model.dropout from 0 to 1, found 1.5; set such"),
        ({"names": "a"}, "expected config.model.names to be a list of texts, found 'a'; set a"),
        ({"names": ()}, "expected names in config.model.names, found none; name some"),
        ({"names": ("a", "a")}, "expected each of config.model.names once, found 'a' 2 times"),
        ({"depth": 0}, "expected config.model.depth above 0, found 0"),
        ({"file": 3}, "expected config.model.file to be a text, found 3; set a text"),
        ({"heads": 3}, "config.model: expected width divisible by heads, found 8/3; correct"),
    ],
)
def test_a_section_names_the_key(given, words):
    values = {"width": 8} | given
    with pytest.raises(UserError) as error:
        build(Network, values, section="model")
    assert str(error.value).startswith(words)


def test_what_is_missing_and_what_stands_elsewhere():
    with pytest.raises(UserError, match=r"^expected config\.model\.width, found no such setting;"):
        build(Network, {"heads": 2}, section="model")
    assert build(Network, {"heads": 2}, section="model", more={"width": 4}).width == 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Settings):
    deep: bool


SECTIONS = {
    "": Section((Run,)),
    "model": Section((Network,), read=lambda config: config.deep),
}


def test_a_whole_config():
    config = config_dict.ConfigDict({"deep": True, "model": {"width": 8, "file": "f", "run": "r"}})
    settings.check(config, SECTIONS)
    places = [("model.file", False), ("model.run", True)]
    assert list(settings.places(config, SECTIONS)) == places
    config.model.width = 0
    with pytest.raises(UserError, match=r"config\.model\.width above 0"):
        settings.check(config, SECTIONS)
    # What nothing reads must be of the right kind alone.
    config.deep = False
    settings.check(config, SECTIONS)
    for values, words in (
        ({"deep": False, "model": {"width": "w"}}, r"config\.model\.width .*found 'w'"),
        (
            {"deep": True, "model": {"widht": 8}},
            r"settings of width, .* in config\.model, found 'w",
        ),
        ({"deep": True, "model": 8}, r"expected a section config\.model, found 8"),
        ({"deep": True}, r"expected a section config\.model, found None"),
        ({"deep": True, "more": {}, "model": {}}, "settings of deep in config, found 'more'"),
    ):
        with pytest.raises(UserError, match=words):
            settings.check(config_dict.ConfigDict(values), SECTIONS)
