"""Plans a zoo: which runs each method has, on which trial settings, and where they lie."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import scipy.stats
from ml_collections import config_dict

from core.errors import UserError
from core.object_store import whole_place
from core.workdir import Workdir, settings
from experiments.resolve import resolve

# Settings that say where things lie.
PLACES = ("cache_dir", "data_dir")
# Returns the config of a method on the zoo's data set, and what its file has to try: from and to.
ConfigOf = Callable[[str], tuple[config_dict.ConfigDict, Mapping[str, tuple[float, float]]]]
# What trials vary wherever a method has it: times its own value, evenly in the logarithm.
_TIMES = {"train.learning_rate": (0.25, 4.0), "train.lambda_l2": (0.1, 10.0)}
# And what they draw evenly.
_BETWEEN = {"model.dropout": (0.0, 0.6)}
_DRAWS = 7  # seed of the draws: every share, and every zoo, makes the same


@dataclasses.dataclass(frozen=True)
class Zoo:
    """Describes what is trained; a workdir belongs to one zoo, which may grow in methods and seeds.

    Attributes:
      dataset, methods: by their names in configs.
      seeds: of the chosen settings of every method.
      budget: trials of every method, the settings of its config file among them.
      settings: by dotted key, for every method that has the key.
    """

    dataset: str
    methods: tuple[str, ...]
    seeds: int
    budget: int
    settings: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Returns what a workdir's zoo is, beside where prepared data lie."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        values["settings"].pop("cache_dir", None)
        return values


@dataclasses.dataclass(frozen=True)
class Method:
    """Describes a method's part of a zoo.

    Attributes:
      config: resolved.
      trials: changes of each trial by dotted key, the first none; one alone where nothing varies.
      folder: of its runs.
    """

    name: str
    config: config_dict.ConfigDict
    trials: tuple[Mapping[str, float], ...]
    folder: str

    def run(self, trial: int, seed: int) -> tuple[config_dict.ConfigDict, str]:
        """Returns the config and the folder of a run.

        It tests against the config's first protocol alone; of the runs that count, the others come
        after the choice (`studies.zoo.running`).
        """
        config = config_dict.ConfigDict(self.config.to_dict())
        config.update_from_flattened_dict(dict(self.trials[trial]))
        config.seed += seed
        config.eval.protocols = tuple(config.eval.protocols)[:1]
        return config, os.path.join(self.folder, f"trial{trial}", f"seed{config.seed}")


def whole_places(zoo: Zoo) -> Zoo:
    """Returns the zoo with whole paths, so that it is the same from any folder."""
    places = {
        key: whole_place(zoo.settings[key], f"--setting={key}")
        for key in PLACES
        if isinstance(zoo.settings.get(key), str) and zoo.settings[key]
    }
    return dataclasses.replace(zoo, settings={**zoo.settings, **places})


def check_zoo(zoo: Zoo, known: Sequence[str]) -> None:
    """Refuses a zoo that cannot be.

    Args:
      known: the names of methods.

    Raises:
      UserError: no or unknown methods, one twice, or numbers out of range.
    """
    unknown = [name for name in zoo.methods if name not in known]
    if unknown or not zoo.methods:
        raise UserError(
            f"expected --methods of {', '.join(known)}, found {', '.join(unknown) or 'none'}; pass "
            "these"
        )
    if len(set(zoo.methods)) < len(zoo.methods):
        raise UserError(
            f"expected every method of --methods once, found {', '.join(zoo.methods)}; leave one "
            "out"
        )
    for name, value in (("seeds", zoo.seeds), ("budget", zoo.budget)):
        if value < 1:
            raise UserError(f"expected --{name} of 1 or more, found {value}; correct it")


def recommends(config: config_dict.ConfigDict) -> bool:
    """Tells whether a config is of a method that recommends, which a zoo compares."""
    return "protocols" in config.eval


def plan(zoo: Zoo, config_of: ConfigOf, workdir: Workdir) -> list[Method]:
    """Returns every method's part of a zoo.

    Raises:
      UserError: a method that answers searches alone; a setting that no method has, or that does
        not fit one.
    """
    methods: list[Method] = []
    used: set[str] = set()
    for name in zoo.methods:
        config, tried = config_of(name)
        if not recommends(config):
            raise UserError(
                f"expected --methods that recommend, found {name}, which answers searches alone; "
                "leave it out, and train it by launch.train"
            )
        own = {key: value for key, value in zoo.settings.items() if _has(config, key)}
        used |= own.keys()
        for key, value in own.items():
            _set(config, key, value)
        config = resolve(config, own.keys())
        folder = os.path.join(workdir.path, "runs", name)
        trials = _trials(config, tried, zoo.budget, set(own))
        methods.append(Method(name, config, trials, folder))
    unused = sorted(zoo.settings.keys() - used)
    if unused:
        raise UserError(
            f"expected --setting of keys that a method of the zoo has, found {', '.join(unused)}; "
            "correct or leave them out"
        )
    return methods


def _has(config: config_dict.ConfigDict, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(config, config_dict.ConfigDict) or part not in config:
            return False
        config = config[part]
    return True


def _set(config: config_dict.ConfigDict, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        config = config[section]
    with config.ignore_type():  # the check of all settings tells it better
        config[name] = tuple(value) if isinstance(value, list) else value


def _trials(
    config: config_dict.ConfigDict,
    tried: Mapping[str, tuple[float, float]],
    budget: int,
    given: set[str],
) -> tuple[Mapping[str, float], ...]:
    """Draws a method's trials: its config's own values, then points of a scrambled Sobol sequence.

    Args:
      given: keys that the zoo sets, which stay.
    """
    values = settings(config.to_dict())
    ranges: dict[str, Callable[[float], float]] = {}
    for key, (low, high) in _TIMES.items():
        if values.get(key):
            ranges[key] = _log_between(values[key] * low, values[key] * high)
    for key, (low, high) in {**_BETWEEN, **tried}.items():
        if key in values:
            ranges[key] = _between(low, high)
    ranges = {key: draw for key, draw in ranges.items() if key not in given}
    if not ranges or budget == 1:
        return ({},)
    # A power of two at once, as the sequence wants, of which the first are taken.
    points = scipy.stats.qmc.Sobol(len(ranges), rng=_DRAWS).random_base2(
        math.ceil(math.log2(budget))
    )
    return (
        {},
        *(
            {key: draw(x) for (key, draw), x in zip(ranges.items(), point.tolist(), strict=True)}
            for point in points[: budget - 1]
        ),
    )


def _between(low: float, high: float) -> Callable[[float], float]:
    return lambda x: _short(low + (high - low) * x)


def _log_between(low: float, high: float) -> Callable[[float], float]:
    return lambda x: _short(low * (high / low) ** x)


def _short(value: float) -> float:
    """Rounds to three digits, as a reader would set it again."""
    return float(f"{value:.3g}")
