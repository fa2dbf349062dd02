"""Compares finished runs on one metric: means over seeds, and paired tests over users.

    python -m launch.compare --workdirs=A,B,... [--metric=ndcg@5/full] [--split=test]
        [--strata=noise]

Workdirs whose configs differ in the seed alone are one row. Every stage of a run is a row of its
own. Prints Markdown: per row the mean, its deviation over seeds and the seeds; per pair the
difference of per-user means over seeds with a bootstrap interval and a paired t-test, p-values
corrected by Holm's method. On sample data, --strata=noise adds a table by the share of noise
among the searches in a user's history, which only the sample knows.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats
from absl import flags
from ml_collections import config_dict

from core import metrics
from core.errors import UserError
from core.workdir import Workdir
from launch import cli
from launch.data import Data

# What may differ between the runs of one row: the seed, where things are, how they are read.
_FREE_KEYS = frozenset(
    [
        "seed",
        "cache_dir",
        "data_dir",
        "mesh.data",
        "mesh.table",
        "loop.log_every",
        "eval.protocols",
        "eval.search_protocols",
        "eval.batch_size",
        "eval.full_batch_size",
    ]
)
# What must not differ between runs that are compared.
_SHARED = ("data_hash", "data_split", "candidates_seed", "data")
_RESAMPLES = 2000
_NOISE_EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclasses.dataclass(frozen=True)
class Row:
    """One method: its name, its runs' seeds, their means, and per-user means over them [E]."""

    name: str
    seeds: tuple[int, ...]
    means: tuple[float, ...]
    per_user: np.ndarray


@dataclasses.dataclass(frozen=True)
class Pair:
    """Second row minus first: mean difference, 95% bootstrap interval, t-test p, Holm's p."""

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction; keeps the order of `p_values`."""
    order = np.argsort(p_values)
    corrected = np.zeros(len(p_values))
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected.tolist()


def _settings(config: dict[str, Any]) -> dict[str, str]:
    """What sets runs apart, as 'section.key': JSON."""

    def flat(tree, prefix=""):
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", json.dumps(value)

    return {name: value for name, value in flat(config) if name not in _FREE_KEYS}


def _config_key(config: dict[str, Any]) -> str:
    return json.dumps(_settings(config), sort_keys=True)


def _differing(configs: list[dict[str, Any]]) -> list[str]:
    """Which settings tell configs of one method apart."""
    every = [_settings(config) for config in configs]
    names = sorted(set().union(*every))
    return [name for name in names if len({one.get(name) for one in every}) > 1]


def read_rows(workdirs: Sequence[str], metric: str, split: str) -> list[Row]:
    """The rows to compare, in the order of the workdirs.

    Raises:
      UserError: a workdir without that metric, or runs on different data, splits or users.
    """
    name, _, protocol = metric.partition("/")
    metrics.metric(name)
    if not protocol:
        raise UserError(f"expected a metric with its protocol, such as {name}/full, found {name!r}")
    groups: dict[tuple[str, str], list[tuple[dict[str, Any], np.ndarray]]] = {}
    configs: dict[str, dict[str, Any]] = {}
    first: tuple[str, dict[str, Any], np.ndarray] | None = None
    for path in workdirs:
        workdir = Workdir(path)
        config = workdir.read_config()
        found = [
            row
            for row in workdir.read_results()["rows"]
            if row["split"] == split and metric in row["metrics"]
        ]
        if not found:
            raise UserError(
                f"expected {metric} on {split} in the results of {path}, found none; run "
                f"launch.evaluate --workdir={path} --protocols={protocol}"
            )
        if "method" not in config:
            raise UserError(
                f"expected a config.json that names its method in {path}, found none; it is of a "
                "version before there were several: train it again"
            )
        key = _config_key(config)
        configs[key] = config
        for row in found:
            with np.load(os.path.join(workdir.path, row["per_user"])) as file:
                users, values = file["user"], file[name]
            if first is None:
                first = (path, row, users)
            _check_comparable(*first, path, row, users)
            groups.setdefault((key, row["stage"]), []).append((row, values))
    return [
        Row(
            _label(configs, key, stage, {s for k, s in groups if k == key}),
            tuple(row["seed"] for row, _ in runs),
            tuple(row["metrics"][metric] for row, _ in runs),
            np.asarray(np.mean([values for _, values in runs], 0, dtype=np.float64)),
        )
        for (key, stage), runs in groups.items()
    ]


def _check_comparable(path, row, users, other_path, other, other_users) -> None:
    for key in _SHARED:
        if row[key] != other[key]:
            raise UserError(
                f"expected runs on one {key}, found {row[key]!r} in {path} and {other[key]!r} in "
                f"{other_path}; compare runs of the same data and lists"
            )
    if not np.array_equal(users, other_users):
        raise UserError(
            f"expected the same test users in {path} and {other_path}, found others; evaluate both "
            "with the same eval settings"
        )


def _label(configs: dict[str, dict[str, Any]], key: str, stage: str, stages: set[str]) -> str:
    """The method, its stage where there are several, and what sets it apart from its like."""
    config = configs[key]
    name = config["method"] + (f" ({stage})" if len(stages) > 1 else "")
    like = [other for other in configs.values() if other["method"] == config["method"]]
    if len(like) == 1:
        return name
    parts = []
    for setting in _differing(like):
        value: Any = config
        for part in setting.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        parts.append(f"{setting}={value}")
    return f"{name} {', '.join(parts)}"


def compare_pairs(rows: Sequence[Row], seed: int = 0, *, against_first: bool = False) -> list[Pair]:
    """Every pair of rows, paired over users; or each of the others with the first alone."""
    rng = np.random.default_rng(seed)
    found = []
    pairs = itertools.combinations(rows, 2)
    for first, second in itertools.product(rows[:1], rows[1:]) if against_first else pairs:
        differences = second.per_user - first.per_user
        p = float(scipy.stats.ttest_rel(second.per_user, first.per_user).pvalue)
        n = len(differences)
        means = [differences[rng.integers(0, n, n)].mean() for _ in range(_RESAMPLES)]
        low, high = np.quantile(means, [0.025, 0.975])
        # Rows that never differ have no variance to test.
        found.append((first, second, differences.mean(), low, high, 1.0 if np.isnan(p) else p))
    corrected = holm([p for *_, p in found])
    return [
        Pair(a.name, b.name, float(d), float(low), float(high), p, p_holm)
        for (a, b, d, low, high, p), p_holm in zip(found, corrected, strict=True)
    ]


def to_markdown(rows: Sequence[Row], pairs: Sequence[Pair], metric: str) -> str:
    lines = [f"| method | {metric} | deviation over seeds | seeds |", "|---|---:|---:|---|"]
    for row in rows:
        spread = f"{np.std(row.means, ddof=1):.4f}" if len(row.means) > 1 else "one seed"
        seeds = ", ".join(map(str, row.seeds))
        lines.append(f"| {row.name} | {np.mean(row.means):.4f} | {spread} | {seeds} |")
    if pairs:
        lines += [
            "",
            f"| pair: second minus first, {metric} | difference | 95% interval | p | p (Holm) |",
            "|---|---:|---:|---:|---:|",
        ]
    for pair in pairs:
        lines.append(
            f"| {pair.first} -> {pair.second} | {pair.difference:+.4f} | "
            f"[{pair.low:+.4f}, {pair.high:+.4f}] | {pair.p:.2g} | {pair.p_holm:.2g} |"
        )
    return "\n".join(lines)


def noise_strata(workdir: str, split: str) -> dict[str, np.ndarray]:
    """Users by the share of noise in their searches: label -> bool [E].

    Raises:
      UserError: the run is not on sample data.
    """
    from input_pipelines.sample_truth import noise_share

    data = Data(config_dict.ConfigDict(Workdir(workdir).read_config()))
    if not data.log.is_sample:
        raise UserError(
            f"expected runs on sample data for --strata=noise, found {data.label} in {workdir}; "
            "elsewhere nobody knows which searches are noise"
        )
    share = noise_share(data.log, data.split(split))
    strata = {"no searches": np.isnan(share), "noise 0": share == 0.0}
    strata |= {
        f"noise ({low:g}, {high:g}]": (share > low) & (share <= high)
        for low, high in itertools.pairwise(_NOISE_EDGES)
    }
    return {label: chosen for label, chosen in strata.items() if chosen.any()}


def strata_to_markdown(rows: Sequence[Row], strata: dict[str, np.ndarray], metric: str) -> str:
    """Every row's mean in every stratum, and its gain over the first row with a 95% interval."""
    lines = [
        f"| {metric} | " + " | ".join(f"{k} ({v.sum()} users)" for k, v in strata.items()) + " |",
        "|---|" + "---:|" * len(strata),
    ]
    for row in rows:
        cells = []
        for chosen in strata.values():
            cell = f"{row.per_user[chosen].mean():.4f}"
            gain = (row.per_user - rows[0].per_user)[chosen]
            if row is not rows[0] and len(gain) > 1:
                half = 1.96 * gain.std(ddof=1) / np.sqrt(len(gain))
                cell += f" ({gain.mean():+.4f} ± {half:.4f})"
            cells.append(cell)
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def define_flags() -> None:
    flags.DEFINE_list("workdirs", [], "Folders of finished runs.")
    flags.DEFINE_string("metric", "ndcg@5/neg99", "Metric with its protocol, such as hr@10/full.")
    flags.DEFINE_string("split", "test", "validation or test.")
    flags.DEFINE_enum("strata", "", ("", "noise"), "Also a table over strata of users.")


def main() -> None:
    if not flags.FLAGS.workdirs:
        raise UserError("expected --workdirs=A,B,..., found none; pass folders of finished runs")
    rows = read_rows(flags.FLAGS.workdirs, flags.FLAGS.metric, flags.FLAGS.split)
    print(to_markdown(rows, compare_pairs(rows), flags.FLAGS.metric))
    if flags.FLAGS.strata:
        strata = noise_strata(flags.FLAGS.workdirs[0], flags.FLAGS.split)
        print("\n" + strata_to_markdown(rows, strata, flags.FLAGS.metric))


if __name__ == "__main__":
    cli.run(main, define_flags)
