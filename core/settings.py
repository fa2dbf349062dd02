"""Checks every setting of a config: its kind, its range, and what several must have in common.

A dataclass below `Settings` describes settings: a field's annotation says the kind of its value
and, as `Annotated[int, ABOVE_0]`, its range; the method `check` says what several fields must have
in common. Such a dataclass raises ValueError wherever it is made. `build` makes one from a section
of a config, and `check` goes over a whole config by the `Section` of each of its parts; both raise
UserError with the full name of the key. What depends on two sections, the experiment that owns both
checks (`core.experiment.Experiment.check_settings`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, TypeVar

from core.errors import UserError

_Built = TypeVar("_Built", bound="Settings")


@dataclasses.dataclass(frozen=True)
class Rule:
    """Says which values of the right kind a setting takes.

    Attributes:
      words: what a message calls them, after the key: 'above 0'.
      fits: tells whether a value is one.
      remedy: ends the message.
    """

    words: str
    fits: Callable[[Any], Any]
    remedy: str = "set such a value"

    def misfit(self, key: str, value: Any) -> str | None:
        """Returns the message about a value that does not fit, None for one that does."""
        if self.fits(value):
            return None
        return f"expected {key} {self.words}, found {_shown(value)}; {self.remedy}"


@dataclasses.dataclass(frozen=True)
class NamesOnce:
    """Refuses lists that name a thing twice, and, where `least` is 1, lists without a name."""

    least: int = 0
    words = ""

    def misfit(self, key: str, value: Any) -> str | None:
        names = list(value)
        if len(names) < self.least:
            return none_named(key)
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is None:
            return None
        return (
            f"expected each of {key} once, found {_shown(twice)} {names.count(twice)} times; leave "
            "the others out"
        )


def none_named(key: str) -> str:
    """Returns the message about a list that names nothing."""
    return f"expected names in {key}, found none; name some, or leave those of the config file"


def from_to(least: float, most: float) -> Rule:
    """Returns the rule of numbers from `least` to `most`, both among them."""
    return Rule(f"from {least} to {most}", lambda value: least <= value <= most)


def at_least(least: float) -> Rule:
    """Returns the rule of numbers of `least` or more."""
    return Rule(f"of {least} or more", lambda value: value >= least)


def one_of(*known: str, called: str = "") -> Rule:
    """Returns the rule of words that are known.

    Args:
      called: what a message calls them, with its article: 'a T5 size'.
    """
    words = f"of {', '.join(known)}"
    return Rule(f"as {called} {words}" if called else words, known.__contains__, "set one of them")


ABOVE_0 = Rule("above 0", lambda value: value > 0)
# At a rate of 1 nothing is left to scale up.
BELOW_1 = Rule("from 0 to below 1", lambda rate: 0 <= rate < 1)
# What scikit-learn and JAX take alike, and a sweep can count on from.
_SEEDS = Rule("of whole numbers from 0 to 2147483647", lambda seed: 0 <= seed < 2**31)
_WIDTHS = Rule("with widths above 0", lambda widths: all(width > 0 for width in widths))
_SOME_WIDTHS = Rule(
    "with widths above 0", lambda widths: bool(widths) and all(width > 0 for width in widths)
)
_NAMED = Rule("with a name", bool, "set one")
# Marks texts that are places of files or folders where they are not empty.
_PLACE = Rule("", lambda text: True)
# Of those the workdirs of other runs, which may lie in an object store.
_RUN = Rule("", lambda text: True)

Count = Annotated[int, ABOVE_0]
CountOrNone = Annotated[int, at_least(0)]  # where 0 is none of it, or all
Positive = Annotated[float, ABOVE_0]
Weight = Annotated[float, at_least(0)]  # below 0 it would raise what it should lower
Rate = Annotated[float, BELOW_1]
Share = Annotated[float, from_to(0, 1)]
Seed = Annotated[int, _SEEDS]
Widths = Annotated[tuple[int, ...], _WIDTHS]
SomeWidths = Annotated[tuple[int, ...], _SOME_WIDTHS]
Named = Annotated[str, _NAMED]
Place = Annotated[str, _PLACE]
RunPlace = Annotated[str, _PLACE, _RUN]

_ONE = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
_MANY = {int: "whole numbers", float: "numbers", bool: "True or False", str: "texts"}


class Settings:
    """Checks its fields, and holds lists as tuples: base of dataclasses that describe settings.

    Raises:
      ValueError: a value of another kind or out of its range, or as `check`.
    """

    def __post_init__(self):
        for name, hint in _hints(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
            if message := _misfit(name, value, hint):
                raise ValueError(message)
        self.check()

    def check(self) -> None:
        """Raises ValueError where several of its settings do not go together."""

    def check_divisible(self, name: str, *, by: str) -> None:
        """Raises ValueError where one of its numbers is no multiple of another."""
        value, divisor = getattr(self, name), getattr(self, by)
        if value % divisor:
            raise ValueError(f"expected {name} divisible by {by}, found {value}/{divisor}")


def _none(config: Any) -> Mapping[str, Any]:
    del config
    return {}


def _always(config: Any) -> bool:
    del config
    return True


@dataclasses.dataclass(frozen=True)
class Section:
    """Describes a section of a config.

    Attributes:
      classes: which describe its settings; each of these stands in one at least.
      more: values for `classes` that stand elsewhere in the config; asked for once the sections
        before have been checked.
      read: whether a run with the config reads the section; else only kinds are checked.
    """

    classes: tuple[type[Settings], ...]
    more: Callable[[Any], Mapping[str, Any]] = _none
    read: Callable[[Any], bool] = _always

    @property
    def hints(self) -> dict[str, Any]:
        """Returns what describes each of its settings."""
        return {name: hint for cls in self.classes for name, hint in _hints(cls).items()}


def build(
    cls: type[_Built],
    values: Mapping[str, Any],
    *,
    section: str,
    more: Mapping[str, Any] | None = None,
) -> _Built:
    """Builds a settings dataclass from a section of a config.

    Args:
      values: the section's; what the dataclass does not have is left out.
      section: its name in the config; '' for the config itself.
      more: of the dataclass's values those that stand elsewhere; the section's own come first.

    Raises:
      UserError: a value the dataclass refuses, or one it misses.
    """
    hints, where = _hints(cls), _where(section)
    for name in filter(values.__contains__, hints):
        _refuse(f"{where}.{name}", values[name], hints[name])
    given = {name: v for name, v in {**(more or {}), **values}.items() if name in hints}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name not in given and _is_needed(field):
            raise UserError(
                f"expected {where}.{field.name}, found no such setting; take the one of the "
                "config's file"
            )
    try:
        return cls(**given)
    except ValueError as error:
        text = str(error)
        raise UserError(f"{where}: {text}" + ("" if ";" in text else "; correct them")) from None


def _is_needed(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def check(config: Any, sections: Mapping[str, Section]) -> None:
    """Checks every setting of a config.

    Args:
      config: a ConfigDict.
      sections: of the config, in the order in which they are checked; that of '' describes what
        stands in none.

    Raises:
      UserError: a section or setting is missing, unknown, of another kind or out of its range.
    """
    every = config.to_dict()
    for name, section in sections.items():
        values, where = _values(every, name, sections), _where(name)
        hints = section.hints
        for key, value in values.items():
            if key not in hints:
                raise UserError(
                    f"expected settings of {', '.join(hints) or 'no name'} in {where}, found "
                    f"{key!r}; correct the name"
                )
            _refuse(f"{where}.{key}", value, hints[key], ranges=section.read(config))
        if section.read(config):
            for cls in section.classes:
                build(cls, values, section=name, more=section.more(config))


def places(config: Any, sections: Mapping[str, Section]) -> Iterator[tuple[str, bool]]:
    """Yields the keys of a config whose values are files or folders, such as 'train.teacher', and
    whether they are workdirs of runs.
    """
    every = config.to_dict()
    for name, section in sections.items():
        for key in _values(every, name, sections):
            marks = _taken_apart(section.hints[key])[1]
            if _PLACE in marks:
                yield f"{name}.{key}" if name else key, _RUN in marks


def _values(values: dict[str, Any], name: str, sections: Mapping[str, Section]) -> dict[str, Any]:
    """Returns the values of a section of a config, or with '' those in none of the sections."""
    if not name:
        return {key: value for key, value in values.items() if key not in sections}
    if not isinstance(values.get(name), dict):
        raise UserError(
            f"expected a section {_where(name)}, found {_shown(values.get(name))}; take the one of "
            "the config's file"
        )
    return values[name]


def _where(section: str) -> str:
    return f"config.{section}" if section else "config"


def _refuse(key: str, value: Any, hint: Any, *, ranges: bool = True) -> None:
    if message := _misfit(key, value, hint, ranges=ranges, plain=True):
        raise UserError(message)


def _read_hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


_hints: Callable[[Any], dict[str, Any]] = functools.cache(_read_hints)


def _taken_apart(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Returns the kind of an annotation without its rules, and the rules."""
    if typing.get_origin(hint) is Annotated:
        return hint.__origin__, hint.__metadata__
    return hint, ()


def _misfit(
    key: str, value: Any, hint: Any, *, ranges: bool = True, plain: bool = False
) -> str | None:
    """Returns the message about a value that does not fit an annotation, None for one that does.

    Args:
      ranges: whether the annotation's rules count.
      plain: whether numbers must be Python's own, which JSON takes.
    """
    kind, rules = _taken_apart(hint)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if value is None:
            return None
        (own,) = (part for part in typing.get_args(kind) if part is not type(None))
        return _misfit(key, value, own, ranges=ranges, plain=plain)
    words = next((rule.words for rule in rules if rule.words), "")
    if not _is(value, kind, plain):
        wanted = words or f"to be {_called(kind)}"
        return f"expected {key} {wanted}, found {_shown(value)}; set {_called(kind)}"
    several = isinstance(value, list | tuple)
    for number in value if several else (value,):
        # Whole numbers are finite, though one of 310 digits has no float.
        fraction = isinstance(number, numbers.Real) and not isinstance(number, numbers.Integral)
        if fraction and not math.isfinite(number):
            return f"expected a finite {key}, found {number}; correct it"
    if several and ranges:
        for one in value:
            if message := _misfit(key, one, typing.get_args(kind)[0], plain=plain):
                return message
    if ranges and (messages := [text for rule in rules if (text := rule.misfit(key, value))]):
        return messages[0]
    for number in value if several else (value,):
        if isinstance(number, numbers.Integral) and abs(int(number)) >= 2**63:
            return f"expected {key} of 64 bits, found {_shown(number)}; correct it"
    return None


def _is(value: Any, kind: Any, plain: bool) -> bool:
    """Tells whether a value is of a kind, whatever its range."""
    if typing.get_origin(kind) is tuple:
        element, _ = _taken_apart(typing.get_args(kind)[0])
        return isinstance(value, list | tuple) and all(_is(one, element, plain) for one in value)
    if typing.get_origin(kind) is dict:
        return isinstance(value, Mapping) and all(
            isinstance(one, Mapping) for one in value.values()
        )
    if isinstance(value, bool):
        return kind is bool
    if kind is int:
        return isinstance(value, int if plain else numbers.Integral)
    if kind is float:
        return isinstance(value, int | float if plain else numbers.Real)
    return isinstance(value, kind)


def _called(kind: Any) -> str:
    """Returns the name of a kind with its article."""
    if typing.get_origin(kind) is tuple:
        element, _ = _taken_apart(typing.get_args(kind)[0])
        return f"a list of {_MANY[element]}"
    if typing.get_origin(kind) is dict:
        return "sections of settings"
    return _ONE.get(kind, "a section of settings")


def _shown(value: Any) -> str:
    return f"{value!r:.60}" if isinstance(value, str | list | tuple | dict) else f"{value!s:.60}"
