"""Tables a sweep's results: rows of means over seeds, tests against the first row, Markdown,
JSON, PNG.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import config_dict

from core import drawing
from core.errors import UserError
from core.files import write_atomically
from core.results import device
from core.stages import stage_order, stage_title
from core.workdir import Workdir, commit_id
from input_pipelines.dataset import Dataset
from studies.ablation.sweeps import Setting, Sweep, number_text
from studies.statistics import Pair, Row, compare_pairs, examples_and_users, p_text

_PANEL_WIDTH = 4.6  # inches
_TESTS = ("p of the settings", "p of these checkpoints")


@dataclasses.dataclass(frozen=True)
class Supplement:
    """Holds what a sweep shows beside its table (`studies.ablation.figures`).

    Attributes:
      lines: of Markdown.
      values: for the JSON.
      curves: further lines of the table's PNG, points (x, y) by name.
    """

    lines: list[str]
    values: dict[str, Any]
    curves: dict[str, list[tuple[float, float]]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SweepRow:
    """Holds one setting after one stage.

    Attributes:
      seeds: that have finished the stage, of `runs` that the setting has.
      metrics: every metric's values, one a seed.
      tested: what `launch.compare` tests: the sweep's metric by example, with their users.
      commits, devices: that its runs were made by, each once.
      pair: the row against the first of its stage; None for that one, or where it is alone.
    """

    setting: Setting
    stage: str
    seeds: tuple[int, ...]
    runs: int
    metrics: dict[str, tuple[float, ...]]
    tested: Row
    commits: tuple[str, ...]
    devices: tuple[str, ...]
    pair: Pair | None = None


def read_sweep(
    sweep: Sweep,
    workdirs: Mapping[str, Sequence[str]],
    metric: str,
    stopped: Collection[str] = (),
) -> list[SweepRow]:
    """Reads the rows of a sweep, stage by stage in the order of its settings.

    Args:
      workdirs: the folders of a setting's runs, one a seed, by its label.
      stopped: folders of runs that ended before their last stage; their finished stages count.

    Raises:
      UserError: a finished run without the metric.
    """
    groups: dict[str, list[SweepRow]] = {}
    for setting in sweep.settings:
        by_stage: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        paths = workdirs.get(setting.label, ())
        for path in paths:
            saved = [r for r in Workdir(path).read_results()["rows"] if r["split"] == "test"]
            tested = {row["stage"] for row in saved if metric in row["metrics"]}
            for row in saved:
                # Of a stage whose test has stopped there may be other protocols alone.
                complete = row["stage"] in tested or path not in stopped
                if complete and setting.stage in (None, row["stage"]):
                    by_stage.setdefault(row["stage"], []).append((path, row))
        for stage, rows in by_stage.items():
            # Rows of a table that adds modules are compared whatever their stages.
            group = "" if setting.stage else stage
            groups.setdefault(group, []).append(_row(setting, stage, rows, metric, len(paths)))
    of_stages = sorted(groups.items(), key=lambda item: stage_order(item[0]))
    return [row for _, rows in of_stages for row in _tested(rows)]


def _row(
    setting: Setting, stage: str, rows: list[tuple[str, Any]], metric: str, runs: int
) -> SweepRow:
    name, _, protocol = metric.partition("/")
    values: dict[str, dict[int, float]] = {}
    per_example: dict[int, np.ndarray] = {}
    first: tuple[str, np.ndarray] | None = None
    for path, row in rows:
        for full_name, value in row["metrics"].items():
            values.setdefault(full_name, {})[row["seed"]] = value
        if metric in row["metrics"] and row["protocol"] == protocol:
            users, per_example[row["seed"]] = Workdir(path).read_per_user(row, name)
            first = first or (path, users)
            if not np.array_equal(users, first[1]):
                raise UserError(
                    f"expected the same test users in {first[0]} and {path}, found others; "
                    "evaluate both with the same eval settings"
                )
    if first is None:
        raise UserError(
            f"expected {metric} in the results of {rows[0][0]}, found none; pass a --metric of "
            "config.eval.metrics and config.eval.protocols"
        )
    seeds = tuple(sorted(per_example))
    metrics = {k: tuple(v[s] for s in seeds if s in v) for k, v in values.items()}
    of_seeds = np.stack([per_example[seed] for seed in seeds])
    tested = Row(setting.label, seeds, metrics[metric], of_seeds, first[1])
    commits, devices = (
        tuple(dict.fromkeys(row[name] for _, row in rows)) for name in ("commit", "device")
    )
    return SweepRow(setting, stage, seeds, runs, metrics, tested, commits, devices)


def _tested(rows: list[SweepRow]) -> list[SweepRow]:
    pairs = compare_pairs([row.tested for row in rows], against_first=True)
    tested = zip(rows[1:], pairs, strict=True)
    return [rows[0], *(dataclasses.replace(row, pair=pair) for row, pair in tested)]


def mean_text(values: Sequence[float], form: str = ".4f") -> str:
    """Writes the mean over seeds, with their deviation where there are several."""
    text = f"{np.mean(values):{form}}"
    return text + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")


def mean_of_seeds(values: Sequence[float], fitted: bool) -> str:
    """Writes the mean over seeds as `mean_text`; what is fitted alike by all has no deviation."""
    return mean_text(values[:1] if fitted and len(set(values)) == 1 else values)


def title(config: config_dict.ConfigDict, data: Dataset, rows: Sequence[SweepRow]) -> str:
    """Says where a sweep's numbers come from, in a line."""
    commits, devices = origin(rows)
    made = [f"commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}", *devices]
    return (
        f"{data.label}, test split ({config.data.split}), {len(data.split('test'))} examples, "
        f"{', '.join(made)}; selected on {config.eval.selection} on validation"
    )


def origin(rows: Sequence[SweepRow]) -> tuple[list[str], list[str]]:
    """Returns the commits and devices that made the rows; without rows, the current ones."""
    if not rows:
        return [commit_id()], [device()]
    commits, devices = (
        dict.fromkeys(made_by for row in rows for made_by in getattr(row, name))
        for name in ("commits", "devices")
    )
    return list(commits), list(devices)


def to_markdown(
    sweep: Sweep, rows: Sequence[SweepRow], metric: str, heading: str, stopped: Mapping[str, str]
) -> str:
    """Returns one table: per row the tested metric and its test, then every other metric.

    Metrics are means over seeds with their deviation.
    """
    columns = [name for row in rows for name in row.metrics if name != metric]
    columns = list(dict.fromkeys(columns))
    header = [sweep.axis, "stage", "seeds", metric, "difference", *_TESTS, *columns]
    lines = [f"# Sweep {sweep.text}", "", heading]
    if not rows:
        return "\n".join([*lines, *_stopped_lines(stopped)]) + "\n"
    lines += [
        "",
        f"Means over seeds ± their deviation. Differences of {metric} from the first row of the "
        "same stage over the seeds that both have, with a 95% interval over users (bootstrap; of "
        "fewer than 30 users Student's t). p of the settings: seeds and users are random factors "
        "(mixed model), so that another seed would tell the same; with one seed there is none. p "
        "of these checkpoints: a paired t-test over users, of these trained networks alone. Both "
        f"are corrected by Holm's method. {examples_and_users(rows[0].tested)}",
        "",
        f"| {' | '.join(header)} |",
        "|---|---|---|" + "---:|" * (len(header) - 3),
    ]
    shared, told = _shared_stages(rows), set()
    for row in rows:
        label = row.setting.label
        if row.stage in shared:
            if row.stage in told:
                continue
            told.add(row.stage)
            label = "all settings"
        cells = [_cell(row, name) for name in columns]
        test = ["", "", ""]
        if row.pair is not None:
            pair = row.pair
            difference = f"{pair.difference:+.4f} [{pair.low:+.4f}, {pair.high:+.4f}]"
            if pair.left_out:
                difference += f" over seeds {', '.join(map(str, pair.seeds))}"
            of_settings = p_text(pair.of_methods.p_holm) if pair.of_methods else ""
            test = [difference, of_settings, p_text(pair.p_holm)]
        seeds = ", ".join(map(str, row.seeds))
        if len(row.seeds) < row.runs:
            seeds += f" (of {row.runs} seeds)"
        stage = stage_title(row.stage)
        named = [label, stage, seeds, mean_text(row.metrics[metric])]
        lines.append(f"| {' | '.join([*named, *test, *cells])} |")
    return "\n".join([*lines, *_stopped_lines(stopped)]) + "\n"


def _cell(row: SweepRow, name: str) -> str:
    """Returns the mean of a metric that is not tested, which some seeds may lack."""
    values = row.metrics.get(name, ())
    if not values:
        return ""
    return mean_text(values) + (f" ({len(values)} seeds)" if len(values) < len(row.seeds) else "")


def _shared_stages(rows: Sequence[SweepRow]) -> set[str]:
    """Stages that all settings share, such as pre-training where they differ in RL alone."""
    by_stage: dict[str, list[SweepRow]] = {}
    for row in rows:
        by_stage.setdefault(row.stage, []).append(row)
    return {
        stage
        for stage, of_stage in by_stage.items()
        if len(of_stage) > 1 and all(row.metrics == of_stage[0].metrics for row in of_stage)
    }


def _stopped_lines(stopped: Mapping[str, str]) -> list[str]:
    if not stopped:
        return []
    lines = [f"- {name}: {message}" for name, message in stopped.items()]
    return ["", "Stopped; of stages that they had finished they have rows:", "", *lines]


def to_json(
    sweep: Sweep, rows: Sequence[SweepRow], metric: str, heading: str, stopped: Mapping[str, str]
) -> dict[str, Any]:
    """Returns what the table shows, unrounded."""

    def entry(row: SweepRow) -> dict[str, Any]:
        return {
            "label": row.setting.label,
            "value": row.setting.value,
            "stage": row.stage,
            "seeds": row.seeds,
            "runs": row.runs,
            "metrics": row.metrics,
            "against_first": dataclasses.asdict(row.pair) if row.pair else None,
        }

    commits, devices = origin(rows)
    return {
        "sweep": sweep.text,
        "axis": sweep.axis,
        "metric": metric,
        "commits": commits,
        "devices": devices,
        "heading": heading,
        "rows": [entry(row) for row in rows],
        "stopped": dict(stopped),
    }


def draw(
    sweep: Sweep,
    rows: Sequence[SweepRow],
    shown: Sequence[str],
    heading: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
) -> Any:
    """Draws a panel for each metric: a line a stage over a numeric axis, bars where it has names.

    Args:
      shown: full names of the metrics; the first is that of `curves`.

    Returns:
      The figure, for `core.drawing.save`.
    """
    labels = [stage_title(row.stage) for row in rows] + list(curves)
    columns, lines = _legend_grid(list(dict.fromkeys(labels)), _PANEL_WIDTH * len(shown))
    figure, axes = drawing.pyplot().subplots(
        1,
        len(shown),
        figsize=(_PANEL_WIDTH * len(shown), 3.4 + 0.2 * lines),
        squeeze=False,
        constrained_layout=True,
    )
    for axis, name in zip(axes[0], shown, strict=True):
        for stage in dict.fromkeys(row.stage for row in rows):
            of_stage = [row for row in rows if row.stage == stage]
            means = [np.mean(row.metrics[name]) for row in of_stage]
            spreads = [
                np.std(row.metrics[name], ddof=1) if len(row.seeds) > 1 else 0.0 for row in of_stage
            ]
            places = [_place(row, rows) for row in of_stage]
            title = stage_title(stage)
            if rows[0].setting.value is None:
                axis.barh(places, means, xerr=spreads, height=0.7, label=title)
            else:
                axis.errorbar(places, means, yerr=spreads, marker="o", capsize=3, label=title)
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        if rows[0].setting.value is None:
            labels = [row.setting.label for row in rows]
            axis.set_yticks(range(len(rows)), labels, fontsize=8)
            axis.invert_yaxis()
            axis.set_xlabel(name)
        else:
            values = _values(rows)
            for label, points in curves.items() if axis is axes[0, 0] else ():
                on_axis = [(values.index(x), y) for x, y in points if x in values]
                axis.plot(*zip(*on_axis, strict=True), linestyle="--", marker=".", label=label)
            axis.set_xticks(range(len(values)), [number_text(value) for value in values])
            axis.set_xlabel(sweep.axis)
            axis.set_ylabel(name)
    # One for all panels, below them: inside it would cover bars.
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)
    figure.suptitle(heading.partition(",")[0], fontsize=10)
    return figure


def _legend_grid(labels: Sequence[str], width: float) -> tuple[int, int]:
    """Columns of a legend that fit into `width` inches, and its lines."""
    # Inches of a letter of font size 8, and of the handle with its gaps.
    widest = 0.068 * max(map(len, labels)) + 0.6
    columns = min(len(labels), max(1, int(width / widest)))
    return columns, -(-len(labels) // columns)


def _place(row: SweepRow, rows: Sequence[SweepRow]) -> int:
    """Values stand evenly, as in the paper's figures; names one below the other."""
    if row.setting.value is None:
        return next(i for i, other in enumerate(rows) if other is row)
    return _values(rows).index(row.setting.value)


def _values(rows: Sequence[SweepRow]) -> list[float]:
    return sorted({row.setting.value for row in rows if row.setting.value is not None})


def write(
    workdir: Workdir,
    sweep: Sweep,
    rows: Sequence[SweepRow],
    metric: str,
    heading: str,
    stopped: Mapping[str, str],
    beside: Supplement | None = None,
) -> str:
    """Writes table.md, table.json and table.png; returns the Markdown."""
    beside = beside or Supplement([], {})
    text = to_markdown(sweep, rows, metric, heading, stopped)
    values = to_json(sweep, rows, metric, heading, stopped)
    if rows:
        shown = [metric]
        # Figures 7 and 8 show both.
        if sweep.name in ("figure7", "figure8", "table3") and "hr@5/neg99" in rows[0].metrics:
            shown = list(dict.fromkeys([metric, "hr@5/neg99"]))
        figure = draw(sweep, rows, shown, heading, beside.curves)
        drawing.save(figure, workdir.file("table.png"), dpi=120)
        text += "\n![](table.png)\n"
    text += "".join(f"{line}\n" for line in beside.lines)
    values |= beside.values
    write_atomically(workdir.file("table.json"), json.dumps(values, indent=2) + "\n")
    write_atomically(workdir.file("table.md"), text)
    return text
