"""Shows a zoo: one table of quality, tests and costs, a figure of the trade-off, and a page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core import drawing
from core.files import write_atomically
from core.results import remarks
from core.workdir import Workdir
from studies import beyond_accuracy
from studies.ablation.tables import mean_of_seeds
from studies.compare import read_rows, shared_metrics
from studies.comparison_tables import about_tests
from studies.report import report
from studies.statistics import (
    Pair,
    Row,
    compare_pairs,
    effect_text,
    examples_and_users,
    p_text,
)
from studies.zoo.plans import PLACES, Zoo
from studies.zoo.running import Finished

_LISTED = 10  # items of the lists that coverage and its like are of
_FIGURE = "quality_cost.png"
_COSTS = ("s of training", "ms a user", "parameters")


@dataclasses.dataclass(frozen=True)
class Line:
    """Holds a line of the table: a method after one stage.

    Attributes:
      row: of the metric that is tested.
      finished: the method's runs.
      pair: the reference against it; None of the reference.
    """

    row: Row
    finished: Finished
    pair: Pair | None


def write(workdir: Workdir, zoo: Zoo, methods: Sequence[Finished], metric: str) -> str:
    """Writes table.md, table.json, the figure and page.html; returns the Markdown.

    Args:
      metric: that is tested and drawn; '' takes the one that decided on validation.

    Raises:
      UserError: results that lack the metric or were damaged, or other data in some of them.
    """
    stopped = {name: text for one in methods for name, text in one.stopped.items()}
    trained = [one for one in methods if one.seeds]
    text = ["# Zoo", ""]
    if not trained:
        text += _stopped_lines(stopped)
        write_atomically(workdir.file("table.md"), "\n".join([*text, ""]))
        return "\n".join(text)
    paths = [path for one in trained for path in one.seeds]
    names = [one.method.name for one in trained for _ in one.seeds]
    metrics, _ = shared_metrics(paths, "test")
    decided = _validation_metric(trained)
    metric = metric or (decided if decided in metrics else metrics[0])
    rows = read_rows(paths, metric, "test", names)
    lines = _lines(rows, trained)
    others = {name: read_rows(paths, name, "test", names) for name in metrics if name != metric}
    text += [_heading(zoo, paths[0], decided), ""]
    text += [*_table(lines, metric), "", *(f"- {line}" for line in _about(lines)), ""]
    text += [f"![{metric} against what it costs]({_FIGURE})", "", "## Other metrics", ""]
    text += [*_other_metrics(lines, others), ""]
    if any(name.endswith("/full") for name in metrics):
        text += ["## Beyond accuracy", ""]
        full = next(r for name, r in [(metric, rows), *others.items()] if name.endswith("/full"))
        by_key = {(row.config, row.stage): row for row in full}
        ordered = [
            by_key[key] for one in lines if (key := (one.row.config, one.row.stage)) in by_key
        ]
        text += [*beyond_accuracy.table(ordered, paths, "test", "full", _LISTED), ""]
        text += [
            "coverage: the share of the catalogue in anybody's list; gini: 0 where all items are "
            "in as many lists; novelty: bits of the listed items' shares of the training clicks.",
            "",
        ]
    text += ["## Trials", "", *_trials(trained, decided), ""]
    text += _remarks(trained) + _stopped_lines(stopped)
    draw(lines, metric, workdir.file(_FIGURE))
    written = "\n".join(text).rstrip() + "\n"
    write_atomically(workdir.file("table.json"), json.dumps(_values(zoo, lines, metric)) + "\n")
    write_atomically(workdir.file("table.md"), written)
    write_atomically(workdir.file("page.html"), report([workdir.path]))
    return written


def _validation_metric(trained: Sequence[Finished]) -> str:
    return next(iter(trained[0].seeds.values())).metric


def _lines(rows: Sequence[Row], trained: Sequence[Finished]) -> list[Line]:
    """Puts the reference first, the best on validation, and then the others by their mean."""
    by_name = {one.method.name: one for one in trained}

    def validation(row: Row) -> float:
        outcomes = by_name[row.method].seeds.values()
        return float(np.mean([one.validation for one in outcomes if one.validation is not None]))

    # Of a method with several stages the last but its control is what validation chose.
    reference = max(
        rows, key=lambda row: (validation(row), row.stage != "control", rows.index(row))
    )
    others = [row for row in rows if row is not reference]
    ordered = [reference, *sorted(others, key=lambda row: -np.mean(row.means))]
    pairs = compare_pairs(ordered, against_first=True)
    return [
        Line(row, by_name[row.method], pair)
        for row, pair in zip(ordered, [None, *pairs], strict=True)
    ]


def _heading(zoo: Zoo, path: str, decided: str) -> str:
    row = Workdir(path).read_results()["rows"][0]
    shown = {key: value for key, value in zoo.settings.items() if key not in PLACES}
    settings = ", ".join(f"{key}={value}" for key, value in shown.items())
    trials = "1 trial" if zoo.budget == 1 else f"{zoo.budget} trials"
    return (
        f"{row['data']}, test split ({row['data_split']}), {zoo.dataset}; {trials} of "
        f"each method chosen by {decided} on validation with one seed, then {zoo.seeds} seeds of "
        f"the best; commit {row['commit']}, {row['device']}"
        + (f"; every method with {settings}" if settings else "")
    )


def _table(lines: Sequence[Line], metric: str) -> list[str]:
    reference = lines[0].row.name
    head = [
        "method",
        "seeds",
        metric,
        f"difference from {reference}",
        "p of the methods",
        "g",
        "p of these checkpoints",
        *_COSTS,
    ]
    text = [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (len(head) - 2)]
    for line in lines:
        row, pair, cost = line.row, line.pair, line.finished.cost
        tests = ["", "", "", ""]
        if pair is not None:
            test = pair.of_methods
            shown = test or pair
            difference = f"{shown.difference:+.4f} [{shown.low:+.4f}, {shown.high:+.4f}]"
            p, effect = (p_text(test.p_holm), effect_text(test.effect)) if test else ("", "")
            tests = [difference, p, effect, p_text(pair.p_holm)]
        costs = ["", ""]
        if cost is not None:
            costs = [f"{cost.user_ms:.2f}", f"{cost.parameters:,}"]
        seeds = ", ".join(map(str, row.seeds))
        cells = [row.name, seeds, mean_of_seeds(row.means, row.fitted), *tests]
        text.append(f"| {' | '.join([*cells, f'{line.finished.seconds:.3g}', *costs])} |")
    return text


def _about(lines: Sequence[Line]) -> list[str]:
    pairs = [line.pair for line in lines if line.pair is not None]
    rows = [line.row for line in lines]
    tests = about_tests(pairs, rows) if pairs else []
    corrected = (
        "Both p are by Holm's method over the table; differences and intervals are of the methods, "
        "or of these checkpoints where the methods have no test."
    )
    return [
        "Means over seeds ± their deviation. The reference is the best on validation.",
        *tests,
        *[corrected] * bool(pairs),
        "s of training: of one seed, with compilation and the run's tests; ms a user: to rank the "
        "whole catalogue; parameters: all numbers that a method scores with, embedding tables "
        "included, of fitted methods the numbers they keep.",
        examples_and_users(rows[0]),
    ]


def _other_metrics(lines: Sequence[Line], others: Mapping[str, Sequence[Row]]) -> list[str]:
    text = [f"| method | {' | '.join(others)} |", "|---|" + "---:|" * len(others)]
    for line in lines:
        cells = []
        for rows in others.values():
            key = (line.row.config, line.row.stage)
            row = next((row for row in rows if (row.config, row.stage) == key), None)
            cells.append(mean_of_seeds(row.means, row.fitted) if row else "")
        text.append(f"| {line.row.name} | {' | '.join(cells)} |")
    return text


def _trials(trained: Sequence[Finished], decided: str) -> list[str]:
    text = [
        f"| method | trial | {decided} on validation | seconds | settings |",
        "|---|---|---:|---:|---|",
    ]
    for one in trained:
        for number, (changes, outcome) in enumerate(
            zip(one.method.trials, one.trials, strict=True)
        ):
            value = "stopped" if outcome.validation is None else f"{outcome.validation:.4f}"
            told = ", ".join(f"{key}={x:g}" for key, x in changes.items()) or "the config's own"
            chosen = " (chosen)" if number == one.chosen else ""
            cells = [one.method.name, f"{number}{chosen}", value, f"{outcome.seconds:.3g}", told]
            text.append(f"| {' | '.join(cells)} |")
    single = [one.method.name for one in trained if len(one.trials) == 1]
    if single and any(len(one.trials) > 1 for one in trained):
        text += ["", f"{', '.join(single)}: nothing to try, one trial."]
    return text


def _remarks(trained: Sequence[Finished]) -> list[str]:
    """Says of each run what its own table would: below a floor, still improving."""
    said: dict[str, list[str]] = {}
    for one in trained:
        for path in one.seeds:
            config = Workdir(path).read_config()
            for remark in remarks(Workdir(path).read_results(), "test"):
                said.setdefault(f"{one.method.name}: {remark}", []).append(str(config["seed"]))
    if not said:
        return []
    lines = [f"- {remark} (seed {', '.join(seeds)})" for remark, seeds in said.items()]
    return ["## Remarks", "", *lines, ""]


def _stopped_lines(stopped: Mapping[str, str]) -> list[str]:
    if not stopped:
        return []
    return ["Stopped:", "", *(f"- {name}: {text}" for name, text in stopped.items())]


def _values(zoo: Zoo, lines: Sequence[Line], metric: str) -> dict[str, Any]:
    return {
        "zoo": zoo.to_dict(),
        "metric": metric,
        "rows": [
            {
                "method": line.row.name,
                "seeds": line.row.seeds,
                "means": line.row.means,
                "against_first": dataclasses.asdict(line.pair) if line.pair else None,
                "seconds": line.finished.seconds,
                "cost": dataclasses.asdict(line.finished.cost) if line.finished.cost else None,
                "chosen": dict(line.finished.method.trials[line.finished.chosen or 0]),
                "trials": [dataclasses.asdict(one) for one in line.finished.trials],
            }
            for line in lines
        ],
    }


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns which points (cost, quality) no other beats in both, by cost.

    Of equal costs the better point alone, of equal points the first.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i))
    best, chosen = -np.inf, []
    for place in order:
        if points[place][1] > best:
            best = points[place][1]
            chosen.append(place)
    return chosen


def _between_decades(value: float, _: object) -> str:
    """Returns what a small tick of a logarithmic axis says: some of them, as 0.2, have room."""
    return f"{value:g}" if value < 1e4 and f"{value:e}"[0] in "25" else ""


def draw(lines: Sequence[Line], metric: str, path: str) -> None:
    """Draws a panel a cost: every method's mean against it, and the line of what none beats."""
    by_line = [(line, line.finished.cost) for line in lines]
    known = [(line, cost) for line, cost in by_line if cost is not None]
    shown = [line for line, _ in known]
    costs: dict[str, list[float]] = {
        _COSTS[0]: [line.finished.seconds for line in shown],
        _COSTS[1]: [cost.user_ms for _, cost in known],
        _COSTS[2]: [cost.parameters for _, cost in known],
    }
    pyplot = drawing.pyplot()
    figure, axes = pyplot.subplots(
        1,
        len(costs),
        figsize=(4.4 * len(costs), 3.9 + 0.2 * -(-len(shown) // 4)),
        sharey=True,
        layout="constrained",
    )
    qualities = [float(np.mean(line.row.means)) for line in shown]
    for axis, (name, values) in zip(axes, costs.items(), strict=True):
        on_front = front(list(zip(values, qualities, strict=True)))
        axis.plot(
            [values[i] for i in on_front],
            [qualities[i] for i in on_front],
            color="0.6",
            linestyle="--",
            linewidth=1,
            zorder=1,
        )
        for number, line in enumerate(shown):
            means = line.row.means
            spread = np.std(means, ddof=1) if len(means) > 1 else 0.0
            axis.errorbar(
                values[number],
                qualities[number],
                yerr=spread,
                fmt="osD^vP"[number // 10 % 6],
                color=f"C{number % 10}",
                capsize=3,
                label=line.row.name,
            )
            if number in on_front:  # the legend names the others, whose names would overlap
                axis.annotate(
                    line.row.name,
                    (values[number], qualities[number]),
                    (5, 4),
                    textcoords="offset points",
                    fontsize=7,
                )
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(pyplot.FuncFormatter(_between_decades))
        axis.tick_params(axis="x", which="minor", labelsize=7)
        axis.set_xlabel(name)
        axis.margins(0.25, 0.15)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(metric)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle("Mean and deviation over seeds; dashed: no method is better and cheaper")
    drawing.save(figure, path, dpi=110)
