"""Names what `launch.ablate --sweep=...` can sweep: values, and the settings they stand for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ml_collections import config_dict

from core import metrics
from core.errors import UserError
from lcrsr import history_encoder, latent_reasoning, losses, rollout

# Settings that are arithmetic alone: runs that differ in nothing else share one program.
NUMBERS = frozenset(
    [
        "seed",
        "train.active_steps",
        "train.lambda_tcl",
        "train.margin",
        "train.learning_rate",
        "rl.gamma",
        "rl.lambda_kl",
        "rl.learning_rate",
    ]
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Describes one row of a sweep: its label and the config keys it sets.

    Attributes:
      value: its place on the figure's axis; None where the axis has names.
      stage: the only stage that the row reports; None reports every stage of the run.
    """

    label: str
    changes: dict[str, Any]
    value: float | None = None
    stage: str | None = None


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Names a list of settings.

    Attributes:
      text: as given, such as 'k:0,1,2'; a workdir belongs to one.
      axis: what the settings differ in.
      timed: of table4, the numbers of steps whose inference is timed; it trains nothing.
    """

    name: str
    text: str
    axis: str
    settings: tuple[Setting, ...]
    timed: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Number:
    """Describes a numeric sweep: its key, default values, and what a value must fulfil."""

    key: str
    axis: str
    values: tuple[float, ...]
    fits: Callable[[float], bool]
    range: str
    needs_rl: bool = False


@dataclasses.dataclass(frozen=True)
class _Choice:
    """Describes a sweep over the names that a setting can have."""

    key: str
    names: tuple[str, ...]
    needs_rl: bool = False


def _not_negative(value: float) -> bool:
    return value >= 0


_WEIGHTS = (0.0, 0.01, 0.05, 0.1, 0.3, 0.5, 1.0)
_MOST_K = 100  # memory and time grow with every step
_K = _Number(
    "train.active_steps",
    "K",
    (),
    lambda k: 0 <= k <= _MOST_K and k == int(k),
    f"whole, from 0 to {_MOST_K}",
)
_TCL = _Number("train.lambda_tcl", "lambda_TCL", _WEIGHTS, _not_negative, "0 or more")
_KL = _Number("rl.lambda_kl", "lambda_KL", _WEIGHTS, _not_negative, "0 or more", needs_rl=True)
_NUMBERS = {
    "k": _K,
    "lambda_tcl": _TCL,
    "lambda_kl": _KL,
    "margin": _Number(
        "train.margin", "margin", (0.0, 0.05, 0.1, 0.2, 0.5), _not_negative, "0 or more"
    ),
    "gamma": _Number(
        "rl.gamma", "gamma", (0.03, 0.1, 0.3, 1.0, 3.0), lambda v: v > 0, "above 0", needs_rl=True
    ),
    "learning_rate": _Number(
        "train.learning_rate",
        "learning rate",
        (3e-4, 1e-3, 3e-3),
        lambda v: v > 0,
        "above 0",
    ),
    "figure6": _K,
    "figure7": _TCL,
    "figure8": _KL,
}
_CHOICES = {
    "block": _Choice("model.block", history_encoder.BLOCKS),
    "self_context": _Choice("model.self_context", latent_reasoning.SELF_CONTEXTS),
    "distance": _Choice("train.distance", losses.DISTANCES),
    "stop_gradient": _Choice("train.stop_gradient", losses.STOP_GRADIENTS),
    "policy": _Choice("rl.policy", rollout.POLICIES, needs_rl=True),
    "reward": _Choice("rl.reward", ("hr@1", "hr@5", "ndcg@5", "ndcg@10"), needs_rl=True),
}
_FIXED = ("table3", "figure4", "figure5")
_MOST_STEPS = 5  # of Table 4
NAMES = (*_NUMBERS, *_CHOICES, *_FIXED, "table4", "figure2")
_THRESHOLDS = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0)


def parse_sweep(text: str, config: config_dict.ConfigDict, given: Collection[str] = ()) -> Sweep:
    """Parses the sweep that `text` names: NAME or NAME:VALUE,VALUE,...

    Args:
      config: resolved; a sweep over K may ask for more steps than it has.
      given: keys that the command line set; these are kept to.

    Raises:
      UserError: no such sweep, or a value that does not fit.
    """
    name, _, listed = text.partition(":")
    values = [value.strip() for value in listed.split(",")] if listed else []
    if name not in NAMES:
        raise UserError(f"expected --sweep of {', '.join(NAMES)}, found {name!r}; pass one of them")
    method = "unisar" if name == "figure2" else "lcr_ser"
    if config.method != method:
        raise UserError(
            f"expected a config of {method} for the sweep {name}, found one of {config.method}; "
            f"pass --config=configs/{method}.py:DATASET"
        )
    if len(set(values)) < len(values):
        raise UserError(f"expected every value of --sweep once, found {listed}; leave one out")
    if name in _NUMBERS:
        return _sweep_of_numbers(name, text, values, config, given)
    if name in _CHOICES:
        return _sweep_of_choices(name, text, values, config)
    if name == "figure2":
        return _sweep_of_thresholds(text, values, config)
    if name == "table4":
        return Sweep(name, text, "K", (), _timed_steps(values))
    if values:
        raise UserError(f"expected --sweep={name} without values, found {listed!r}; leave them out")
    settings = {"table3": _table3, "figure4": _figure4, "figure5": _figure5}[name](config)
    return Sweep(name, text, "model", settings)


def number_text(value: float) -> str:
    """Writes a value as labels and folders show it: different ones differ, however close they
    are.
    """
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _check_distinct(values: Sequence[float]) -> None:
    """Refuses values that are equal as numbers, such as 1 and 1.0. Raises UserError."""
    for place, value in enumerate(values):
        if value in values[:place]:
            raise UserError(
                f"expected every value of --sweep once, found {value:g} twice; leave one out"
            )


def _sweep_of_thresholds(text, values, config) -> Sweep:
    try:
        thresholds = [float(value) for value in values] or list(_THRESHOLDS)
    except ValueError:
        thresholds = [math.nan]
    if thresholds[0] != -1 or not all(-1 <= threshold <= 1 for threshold in thresholds):
        raise UserError(
            f"expected cosine thresholds from -1 to 1 and -1 first, found {','.join(values)!r}: "
            "similarities come from the run that keeps all searches; for instance "
            "--sweep=figure2:-1,0,0.5,1"
        )
    _check_distinct(thresholds)
    _needs_searches("figure2", config)
    settings = [
        Setting(
            f"threshold = {number_text(value)}",
            # Which searches stay depends on each target's own clicks, so all arms read one by one.
            {"train.targets_per_window": 1} | ({"data.search_filter": value} if i else {}),
            value=value,
        )
        for i, value in enumerate(thresholds)
    ]
    return Sweep("figure2", text, "cosine threshold", tuple(settings))


def _timed_steps(values: list[str]) -> tuple[int, ...]:
    if not all(value.isdecimal() for value in values):
        raise UserError(
            f"expected numbers of steps after --sweep=table4:, found {','.join(values)!r}; for "
            "instance --sweep=table4:0,1,2"
        )
    steps = tuple(map(int, values)) or tuple(range(_MOST_STEPS + 1))
    _check_distinct(steps)
    if max(steps) > _MOST_K:
        raise UserError(
            f"expected numbers of steps up to {_MOST_K} after --sweep=table4:, found {max(steps)}; "
            "correct it"
        )
    return steps


def _needs_searches(name: str, config: config_dict.ConfigDict) -> None:
    if not config.data.use_search:
        raise UserError(f"expected config.data.use_search=True for {name}, found False; set it")


def _needs_rl(name: str, config: config_dict.ConfigDict) -> None:
    if not config.rl.enabled:
        raise UserError(
            f"expected config.rl.enabled=True for the sweep {name}, found False: it changes RL "
            "alone; set it"
        )


def _sweep_of_numbers(name, text, values, config, given) -> Sweep:
    sweep = _NUMBERS[name]
    if sweep.needs_rl:
        _needs_rl(name, config)
    try:
        # Added to 0, -0 is 0.
        numbers = [0.0 + float(value) for value in values] or list(sweep.values)
    except ValueError:
        raise UserError(
            f"expected numbers after --sweep={name}:, found {','.join(values)!r}; for instance "
            f"--sweep={name}:0,1"
        ) from None
    changes: dict[str, Any] = {}
    if sweep is _K:
        numbers = numbers or [float(k) for k in range(config.model.max_steps + 1)]
        if all(map(math.isfinite, numbers)) and "model.max_steps" not in given:
            # All arms are the model with as many steps as the largest K has.
            most = max(config.model.max_steps, *map(int, numbers))
            changes = {"model.max_steps": most}
        elif max(numbers) > config.model.max_steps:
            raise UserError(
                f"expected K up to config.model.max_steps = {config.model.max_steps}, found "
                f"{max(numbers):g}; set that key higher or leave it out"
            )
    for number in numbers:
        if not math.isfinite(number) or not sweep.fits(number):
            raise UserError(
                f"expected values {sweep.range} in --sweep={name}, found {number:g}; correct it"
            )
    _check_distinct(numbers)
    settings = [
        Setting(
            f"{sweep.axis} = {number_text(number)}",
            changes | {sweep.key: int(number) if sweep is _K else number},
            value=number,
        )
        for number in numbers
    ]
    return Sweep(name, text, sweep.axis, tuple(settings))


def _sweep_of_choices(name, text, values, config) -> Sweep:
    sweep = _CHOICES[name]
    if sweep.needs_rl:
        _needs_rl(name, config)
    for value in values:
        if name == "reward":
            metrics.metric(value)
        elif value not in sweep.names:
            raise UserError(
                f"expected values of {', '.join(sweep.names)} in --sweep={name}, found {value!r}; "
                "pass these"
            )
    settings = [Setting(value, {sweep.key: value}) for value in values or sweep.names]
    return Sweep(name, text, name, tuple(settings))


def _table3(config: config_dict.ConfigDict) -> tuple[Setting, ...]:
    """Modules added one after another; the last run gives both of its last rows.

    A dot product has no target-aware aggregation (TRA) to add.
    """
    _needs_rl("table3", config)
    base: dict[str, Any] = {
        "train.active_steps": 0,
        "train.lambda_tcl": 0.0,
        "rl.enabled": False,
    }
    steps, attention = config.train.active_steps, config.model.attention
    aggregates = config.model.scorer == "mlp"
    if aggregates:
        base["model.attention"] = "mean"
    if steps == 0 or (aggregates and attention == "mean") or config.train.lambda_tcl == 0:
        raise UserError(
            "expected a config with reasoning steps, target-aware attention and a contrastive "
            f"loss for table3, found active_steps={steps}, attention={attention!r}, lambda_tcl="
            f"{config.train.lambda_tcl:g}; these are what its rows add"
        )
    lcr = base | {"train.active_steps": steps}
    tra = Setting("+ TRA", lcr | {"model.attention": attention}, stage="train")
    whole: dict[str, Any] = {}
    return (
        Setting("Base", base, stage="train"),
        Setting("+ LCR", lcr, stage="train"),
        *([tra] if aggregates else []),
        Setting("+ TCL", whole, stage="train"),
        Setting("+ RL (LCR-SER)", whole, stage="rl"),
        Setting("control: + TCL, trained as long", whole, stage="control"),
    )


def _reasons(name: str, config: config_dict.ConfigDict) -> None:
    _needs_searches(name, config)
    if config.train.active_steps == 0:
        raise UserError(
            f"expected config.train.active_steps of 1 or more for {name}, found 0; set it"
        )


def _figure4(config: config_dict.ConfigDict) -> tuple[Setting, ...]:
    _reasons("figure4", config)
    return (Setting("LCR-SER", {"rl.enabled": False}, stage="train"),)


def _figure5(config: config_dict.ConfigDict) -> tuple[Setting, ...]:
    _reasons("figure5", config)
    if config.train.lambda_tcl == 0:
        raise UserError(
            "expected config.train.lambda_tcl above 0 for figure5, found 0: it shows what that "
            "loss does; set it"
        )
    without = {"rl.enabled": False, "train.lambda_tcl": 0.0}
    return (
        Setting("without L_TCL", without, stage="train"),
        Setting("with L_TCL", {"rl.enabled": False}, stage="train"),
    )
