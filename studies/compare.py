"""Reads the rows of finished runs that are compared, and draws two metrics against each other."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from core import drawing, metrics
from core.errors import UserError
from core.stages import stage_order
from core.workdir import Workdir, settings
from studies.statistics import Row, listed

# What may differ between the runs of one row: the seed, where things are, how they are read.
_FREE_KEYS = frozenset(
    [
        "seed",
        "cache_dir",
        "data_dir",
        "mesh.data",
        "mesh.model",
        "loop.log_every",
        "loop.writers",
        "eval.protocols",
        "eval.search_protocols",
        "eval.batch_size",
        "eval.full_batch_size",
    ]
)
# What must not differ between runs that are compared.
_SHARED = ("data_hash", "data_split", "candidates_seed", "data")
# Settings that a row's name tells; runs that differ in more are called by their folders.
_MOST_SETTINGS = 3
_SEARCH = "search/"  # how protocols of searches begin


def _settings(config: dict[str, Any]) -> dict[str, str]:
    """Returns what sets runs apart, as 'section.key': JSON."""
    values = settings(config)
    return {name: json.dumps(value) for name, value in values.items() if name not in _FREE_KEYS}


def config_key(config: dict[str, Any]) -> str:
    """Returns what the configs of one row have in common."""
    return json.dumps(_settings(config), sort_keys=True)


def _differing(configs: list[dict[str, Any]]) -> list[str]:
    """Returns the settings that tell configs of one method apart."""
    every = [_settings(config) for config in configs]
    names = sorted(set().union(*every))
    return [name for name in names if len({one.get(name) for one in every}) > 1]


def read_rows(
    workdirs: Sequence[str], metric: str, split: str, names: Sequence[str] = ()
) -> list[Row]:
    """Returns the rows to compare, in the order of the workdirs, of one in that of training.

    Args:
      names: what to call each workdir's method; empty: the method and the settings that tell it
        from others.

    Raises:
      UserError: a workdir without that metric; runs on different data, splits or users; a run
        twice; one name for runs that differ in more than their seed, or two names for seeds of one
        config.
    """
    _check_once(workdirs)
    if names and len(names) != len(workdirs):
        raise UserError(
            f"expected a name for each of {len(workdirs)} workdirs, found {len(names)}; pass as "
            "many --names"
        )
    name, _, protocol = metric.partition("/")
    metrics.metric(name)
    if not protocol:
        raise UserError(f"expected a metric with its protocol, such as {name}/full, found {name!r}")
    groups: dict[tuple[str, str], list[tuple[dict[str, Any], np.ndarray, np.ndarray]]] = {}
    runs: dict[str, tuple[dict[str, Any], str]] = {}
    named: dict[str, str] = {}
    first: tuple[str, dict[str, Any], np.ndarray] | None = None
    for place, path in enumerate(workdirs):
        workdir = Workdir(path)
        config = workdir.read_config()
        rows = workdir.read_results()["rows"]
        fitting = [row for row in rows if row["split"] == split and metric in row["metrics"]]
        if not fitting:
            raise _missing(path, config, rows, metric, split)
        if not isinstance(config.get("method"), str):
            raise UserError(
                f"expected a config.json that names its method in {path}, found none; restore the "
                "file, or train it again"
            )
        key = config_key(config)
        runs.setdefault(key, (config, path))
        if names:
            _check_name(named, key, names[place], path)
            named[key] = names[place]
        for row in sorted(fitting, key=lambda row: stage_order(row["stage"])):
            users, values = workdir.read_per_user(row, name)
            if first is None:
                first = (path, row, users)
            _check_comparable(*first, path, row, users)
            group = groups.setdefault((key, row["stage"]), [])
            if any(other["seed"] == row["seed"] for other, *_ in group):
                raise UserError(
                    f"expected runs of one config with seeds of their own, found seed "
                    f"{row['seed']} in {path} and in another workdir; leave one of them out"
                )
            group.append((row, users, values))
    order = {key: place for place, key in enumerate(runs)}
    return [
        Row(
            _label(runs, key, stage, {s for k, s in groups if k == key}, named.get(key)),
            tuple(row["seed"] for row, *_ in of_group),
            tuple(row["metrics"][metric] for row, *_ in of_group),
            np.stack([values for *_, values in of_group]),
            of_group[0][1],
            named.get(key, runs[key][0]["method"]),
            stage,
            key,
        )
        for (key, stage), of_group in sorted(
            groups.items(), key=lambda item: (order[item[0][0]], stage_order(item[0][1]))
        )
    ]


def shared_metrics(workdirs: Sequence[str], split: str) -> tuple[list[str], list[str]]:
    """Returns the metrics of a split that all runs have, and the metrics that only some have.

    Both are in the order of the first run that has them. Metrics without per-example values, such
    as the metrics of identifiers, are left out.

    Raises:
      UserError: the runs have none in common.
    """
    every = []
    for path in workdirs:
        rows = Workdir(path).read_results()["rows"]
        ranked = [row for row in rows if row["split"] == split and "per_user" in row]
        every.append({name: None for row in ranked for name in row["metrics"]})
    names = dict.fromkeys(name for one in every for name in one)
    shared = [name for name in names if all(name in one for one in every)]
    if not shared:
        raise UserError(
            f"expected a metric on {split} that all runs have, found none among "
            f"{', '.join(names) or 'no results'}; run launch.evaluate on each, or pass --metric"
        )
    return shared, [name for name in names if name not in shared]


def _check_once(workdirs: Sequence[str]) -> None:
    places: dict[str, str] = {}
    for path in workdirs:
        place = os.path.realpath(Workdir(path).path)
        if other := places.get(place):
            raise UserError(
                f"expected every workdir once, found {other} and {path}, which are one folder; "
                "leave one of them out"
            )
        places[place] = path


def _check_name(named: dict[str, str], key: str, name: str, path: str) -> None:
    """Refuses a name of the run in `path` that contradicts the names of the runs before it."""
    if named.get(key, name) != name:
        raise UserError(
            f"expected one name for runs that differ in their seed alone, found {named[key]} and, "
            f"of {path}, {name}; give them the same of --names"
        )
    if any(other == name for before, other in named.items() if before != key):
        raise UserError(
            f"expected runs called {name} that differ in their seed alone, found other settings "
            f"in {path}; pass another of --names"
        )


def _missing(
    path: str, config: dict[str, Any], rows: list[dict[str, Any]], metric: str, split: str
) -> UserError:
    """Makes the error that none of a run's rows has the metric on a split, with what helps."""
    name, _, protocol = metric.partition("/")
    of_task = [r for r in rows if r["protocol"].startswith(_SEARCH) == protocol.startswith(_SEARCH)]
    # All rows, where the run is of another task.
    alike = [r for r in of_task if r["protocol"] == protocol] if of_task else rows
    there = [known for r in alike if r["split"] == split for known in r["metrics"]]
    computed = _value(config, "eval.metrics")
    if not there and isinstance(computed, list) and name not in computed:
        there = [metrics.full_name(one, protocol) for one in computed]
    start = f"expected {metric} on {split} in the results of {path}, found"
    if there:
        return UserError(f"{start} {', '.join(dict.fromkeys(there))}; pass one of these")
    chosen = ["--task=search"] * protocol.startswith(_SEARCH)
    # GenSAR's columns add how a protocol's candidates are scored.
    chosen += [f"--protocol={protocol.removeprefix(_SEARCH).partition('/')[0]}"]
    chosen += [f"--split={split}"] * (split != "test")
    return UserError(f"{start} none; run launch.evaluate --workdir={path} {' '.join(chosen)}")


def _check_comparable(path, row, users, other_path, other, other_users) -> None:
    for key in _SHARED:
        if row.get(key) != other.get(key):
            raise UserError(
                f"expected runs on one {key}, found {row.get(key)!r} in {path} and "
                f"{other.get(key)!r} in "
                f"{other_path}; compare runs of the same data and lists"
            )
    if not np.array_equal(users, other_users):
        raise UserError(
            f"expected the same test users in {path} and {other_path}, found others; evaluate both "
            "with the same eval settings"
        )


def _label(
    runs: dict[str, tuple[dict[str, Any], str]],
    key: str,
    stage: str,
    stages: set[str],
    own_name: str | None,
) -> str:
    """Names the method, its stage where there are several, and what sets it apart.

    Args:
      runs: a config and the folder of its first run, by what tells configs apart.
    """
    config, path = runs[key]
    name = (own_name or config["method"]) + (f" ({stage})" if len(stages) > 1 else "")
    like = {k: run for k, run in runs.items() if run[0]["method"] == config["method"]}
    if own_name or len(like) == 1:
        return name
    settings_apart = _differing([other for other, _ in like.values()])
    if len(settings_apart) > _MOST_SETTINGS:
        return f"{name} {_short(path, [other for _, other in like.values()])}"
    parts = []
    for setting in settings_apart:
        value, *others = (_value(one, setting) for one in (config, *(c for c, _ in like.values())))
        parts.append(f"{setting}={_short(str(value), list(map(str, others)))}")
    return f"{name} {', '.join(parts)}"


def _value(config: Any, setting: str) -> Any:
    for part in setting.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _short(path: str, others: Sequence[str]) -> str:
    """Keeps as few of a path's last parts as tell it from the others; what is no path stays."""
    parts = path.rstrip("/").split("/")
    for count in range(1, len(parts)):
        alike = [other.rstrip("/").split("/")[-count:] == parts[-count:] for other in others]
        # The path is among the others.
        if sum(alike) <= others.count(path):
            return "/".join(parts[-count:])
    return path


def draw_trade_off(
    points: dict[str, tuple[float, float]], metric: str, against: str, path: str
) -> None:
    """Draws a point for every row: what it reaches in `metric` across, in `against` upwards."""
    # Names below: beside the points they would lie on each other and run out of the picture.
    height = max(4.8, 3.6 + 0.2 * len(points))
    figure, axes = drawing.pyplot().subplots(figsize=(6.4, height), layout="constrained")
    for number, (name, point) in enumerate(points.items()):
        colour, marker = f"C{number % 10}", "osD^vP"[number // 10 % 6]
        axes.plot(*point, marker, color=colour, alpha=0.8, linestyle="none", label=name)
    figure.legend(loc="outside lower center", fontsize=8)
    axes.set_xlabel(metric)
    axes.set_ylabel(against)
    axes.margins(0.2)
    drawing.save(figure, path, dpi=150)


def trade_off(
    rows: Sequence[Row],
    workdirs: Sequence[str],
    split: str,
    metric: str,
    against: str,
    names: Sequence[str],
    path: str,
) -> str:
    """Draws every method's mean of one metric against that of another; returns them as a table.

    Args:
      rows: of `metric`, as `read_rows` gives them for these workdirs and names.
      path: PNG to write.

    Raises:
      UserError: the metrics of a method are of different seeds, or `read_rows` refuses `against`.
    """
    others = {(row.config, row.stage): row for row in read_rows(workdirs, against, split, names)}
    points = {
        # Names tell the stage only where several stages have the metric.
        row.name: (float(np.mean(row.means)), float(np.mean(other.means)))
        for row in rows
        if (other := others.get((row.config, row.stage))) is not None
    }
    for row in rows:
        other = others.get((row.config, row.stage))
        if other is not None and {*row.seeds} != {*other.seeds}:
            raise UserError(
                f"expected the same seeds in {metric} and {against} of {row.name}, found "
                f"{listed(row.seeds)} and {listed(other.seeds)}; run launch.evaluate on the "
                "others"
            )
    draw_trade_off(points, metric, against, path)
    lines = [f"| method | {metric} | {against} |", "|---|---:|---:|"]
    return "\n".join([*lines, *(f"| {n} | {x:.4f} | {y:.4f} |" for n, (x, y) in points.items())])
