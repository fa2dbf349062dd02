"""Compares finished runs on one metric: means over seeds, and paired tests over users.

    python -m launch.compare --workdirs=A,B,... [--names=A,B,...] [--metric=ndcg@5/full]
        [--split=test] [--strata=noise|popularity|hops|queries]
        [--against=ndcg@5/search/full --figure=PNG]

Workdirs whose configs differ in the seed alone are one row. Every stage of a run is a row of its
own. Prints Markdown: per row the mean over examples (as in results.json), its deviation over seeds
and the seeds; per pair the difference of per-user means over seeds with a bootstrap interval and a
paired t-test, p-values corrected by Holm's method. A user's examples are averaged first, so that
each user counts once, however many examples the split gives them. --strata=popularity adds a table
by how often the target was clicked in training; --strata=noise, on sample data, one by the share of
noise among the searches in a user's history, which only the sample knows; --strata=hops, where
on_sample.hops is set, one by the steps of reasoning that the target is away; --strata=queries, for
a metric of searches, one by the queries that the user asked before (CRS, figure 3). --against draws
one point a row, by two metrics: what a method gains in recommendation it may lose in search
(GenSAR, figure 1a).
"""

from __future__ import annotations

from absl import flags

from launch import cli


def define_flags() -> None:
    flags.DEFINE_list("workdirs", [], "Folders of finished runs.")
    flags.DEFINE_list("names", [], "What to call the method of each workdir.")
    flags.DEFINE_string("metric", "ndcg@5/neg99", "Metric with its protocol, such as hr@10/full.")
    flags.DEFINE_string("split", "test", "validation or test.")
    kinds = ("", "noise", "popularity", "hops", "queries")
    flags.DEFINE_enum("strata", "", kinds, "Also a table over strata of users or targets.")
    flags.DEFINE_string("against", "", "A second metric, drawn against the first in --figure.")
    flags.DEFINE_string("figure", "", "PNG to write for --against.")


cli.begin(__name__, define_flags)

import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

from core import metrics
from core.errors import UserError
from core.workdir import Workdir, check_out, settings
from launch import strata

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
_SEARCH = "search/"  # how protocols of searches begin


def means_of_users(values: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Means [U] over every user's own examples, of values [E] of the examples of users [E]."""
    place = np.unique(users, return_inverse=True)[1]
    return np.bincount(place, values) / np.bincount(place)


@dataclasses.dataclass(frozen=True)
class Row:
    """One method after one stage.

    Attributes:
      name: with the stage where a method has several, and what sets it apart from its like.
      seeds, means: of its runs; a mean is over the examples.
      per_example: the metric float64 [E], averaged over the runs.
      users: of the examples, [E]; a user may have several.
      method, stage: that it is of.
      config: what tells its config from those of other rows.
    """

    name: str
    seeds: tuple[int, ...]
    means: tuple[float, ...]
    per_example: np.ndarray
    users: np.ndarray
    method: str = ""
    stage: str = ""
    config: str = ""

    def per_user(self, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Means [U] over every user's own examples, of all or of those chosen by a bool [E]."""
        return means_of_users(self.per_example[chosen], self.users[chosen])


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
    found = settings(config)
    return {name: json.dumps(value) for name, value in found.items() if name not in _FREE_KEYS}


def _config_key(config: dict[str, Any]) -> str:
    return json.dumps(_settings(config), sort_keys=True)


def _differing(configs: list[dict[str, Any]]) -> list[str]:
    """Which settings tell configs of one method apart."""
    every = [_settings(config) for config in configs]
    names = sorted(set().union(*every))
    return [name for name in names if len({one.get(name) for one in every}) > 1]


def read_rows(
    workdirs: Sequence[str], metric: str, split: str, names: Sequence[str] = ()
) -> list[Row]:
    """The rows to compare, in the order of the workdirs.

    Args:
      names: what to call each workdir's method; empty: the method and the settings that tell it
        from others.

    Raises:
      UserError: a workdir without that metric; runs on different data, splits or users; a run
        twice; one name for runs that differ in more than their seed, or two for those that do not.
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
    configs: dict[str, dict[str, Any]] = {}
    named: dict[str, str] = {}
    first: tuple[str, dict[str, Any], np.ndarray] | None = None
    for place, path in enumerate(workdirs):
        workdir = Workdir(path)
        config = workdir.read_config()
        rows = workdir.read_results()["rows"]
        found = [row for row in rows if row["split"] == split and metric in row["metrics"]]
        if not found:
            raise _missing(path, config, rows, metric, split)
        if "method" not in config:
            raise UserError(
                f"expected a config.json that names its method in {path}, found none; it is of a "
                "version before there were several: train it again"
            )
        key = _config_key(config)
        configs[key] = config
        if names:
            _check_name(named, key, names[place], path)
            named[key] = names[place]
        for row in found:
            with np.load(os.path.join(workdir.path, row["per_user"])) as file:
                users, values = file["user"], file[name]
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
    return [
        Row(
            _label(configs, key, stage, {s for k, s in groups if k == key}, named.get(key)),
            tuple(row["seed"] for row, *_ in runs),
            tuple(row["metrics"][metric] for row, *_ in runs),
            np.asarray(np.mean([values for *_, values in runs], 0, dtype=np.float64)),
            runs[0][1],
            named.get(key, configs[key]["method"]),
            stage,
            key,
        )
        for (key, stage), runs in groups.items()
    ]


def _check_once(workdirs: Sequence[str]) -> None:
    places: dict[str, str] = {}
    for path in workdirs:
        place = os.path.realpath(path)
        if other := places.get(place):
            raise UserError(
                f"expected every workdir once, found {other} and {path}, which are one folder; "
                "leave one of them out"
            )
        places[place] = path


def _check_name(named: dict[str, str], key: str, name: str, path: str) -> None:
    """Refuses a name of the run in `path` that does not go with those of the runs before it."""
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
    """That none of a run's rows has the metric on a split, with what helps."""
    name, _, protocol = metric.partition("/")
    of_task = [r for r in rows if r["protocol"].startswith(_SEARCH) == protocol.startswith(_SEARCH)]
    # All that there is, where the run is of another task.
    alike = [r for r in of_task if r["protocol"] == protocol] if of_task else rows
    there = [known for r in alike if r["split"] == split for known in r["metrics"]]
    if not there and name not in (computed := config.get("eval", {}).get("metrics", [name])):
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


def _label(
    configs: dict[str, dict[str, Any]], key: str, stage: str, stages: set[str], given: str | None
) -> str:
    """The method, its stage where there are several, and what sets it apart from its like."""
    config = configs[key]
    name = (given or config["method"]) + (f" ({stage})" if len(stages) > 1 else "")
    like = [other for other in configs.values() if other["method"] == config["method"]]
    if given or len(like) == 1:
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
        differences = second.per_user() - first.per_user()
        p = float(scipy.stats.ttest_1samp(differences, 0.0).pvalue)
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


def examples_and_users(row: Row) -> str:
    """What means and what tests are over, as a sentence."""
    examples, users = len(row.users), len(np.unique(row.users))
    return (
        f"Means are over {examples:,} examples, differences and their tests over the means of "
        f"{users:,} users."
    )


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
    if pairs:
        lines += ["", examples_and_users(rows[0])]
    return "\n".join(lines)


def draw_trade_off(
    points: dict[str, tuple[float, float]], metric: str, against: str, path: str
) -> None:
    """One point a row: what it reaches in `metric` across, in `against` upwards."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # Names below: beside the points they would lie on each other and run out of the picture.
    height = max(4.8, 3.6 + 0.2 * len(points))
    figure, axes = pyplot.subplots(figsize=(6.4, height), layout="constrained")
    for number, (name, point) in enumerate(points.items()):
        colour, marker = f"C{number % 10}", "osD^vP"[number // 10 % 6]
        axes.plot(*point, marker, color=colour, alpha=0.8, linestyle="none", label=name)
    figure.legend(loc="outside lower center", fontsize=8)
    axes.set_xlabel(metric)
    axes.set_ylabel(against)
    axes.margins(0.2)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _trade_off(rows: Sequence[Row], workdirs: Sequence[str], split: str) -> str:
    found = flags.FLAGS
    metric, against, names = found.metric, found.against, found.names
    found_against = read_rows(workdirs, against, split, names)
    # Names tell the stage only where several stages have the metric.
    others = {(row.config, row.stage): row for row in found_against}
    points = {
        row.name: (float(np.mean(row.means)), float(np.mean(other.means)))
        for row in rows
        if (other := others.get((row.config, row.stage))) is not None
    }
    draw_trade_off(points, metric, against, found.figure)
    lines = [f"| method | {metric} | {against} |", "|---|---:|---:|"]
    return "\n".join([*lines, *(f"| {n} | {x:.4f} | {y:.4f} |" for n, (x, y) in points.items())])


def strata_to_markdown(rows: Sequence[Row], groups: dict[str, np.ndarray], metric: str) -> str:
    """Every row's mean over every stratum's examples, and its users' mean gain over the first row
    with a 95% interval.

    Args:
      groups: label -> bool [E].
    """
    sizes = {label: len(rows[0].per_user(chosen)) for label, chosen in groups.items()}
    lines = [
        f"| {metric} | " + " | ".join(f"{k} ({n} users)" for k, n in sizes.items()) + " |",
        "|---|" + "---:|" * len(groups),
    ]
    for row in rows:
        cells = []
        for chosen in groups.values():
            cell = f"{row.per_example[chosen].mean():.4f}"
            gain = row.per_user(chosen) - rows[0].per_user(chosen)
            if row is not rows[0] and len(gain) > 1:
                cell += f" ({gain.mean():+.4f} ± {metrics.half_interval(gain):.4f})"
            cells.append(cell)
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    workdirs, metric, split = flags.FLAGS.workdirs, flags.FLAGS.metric, flags.FLAGS.split
    if not workdirs:
        raise UserError("expected --workdirs=A,B,..., found none; pass folders of finished runs")
    if split not in ("validation", "test"):
        raise UserError(f"expected --split validation or test, found {split!r}; pass one of them")
    if bool(flags.FLAGS.against) != bool(flags.FLAGS.figure):
        raise UserError("expected --against and --figure together, found one alone; pass both")
    if flags.FLAGS.figure:
        check_out(flags.FLAGS.figure, "--figure", ".png")
    rows = read_rows(workdirs, metric, split, flags.FLAGS.names)
    print(to_markdown(rows, compare_pairs(rows), metric))
    if flags.FLAGS.strata:
        protocol = metric.partition("/")[2]
        found = strata.of(flags.FLAGS.strata, workdirs[0], split, protocol, len(rows[0].users))
        print("\n" + strata_to_markdown(rows, found, metric))
    if flags.FLAGS.against:
        print("\n" + _trade_off(rows, workdirs, split))


if __name__ == "__main__":
    cli.run(main)
