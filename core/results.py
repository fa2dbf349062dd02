"""Saves and shows a run's results: rows of results.json, per-user metrics, table, summary with
curves.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from core import distributed, drawing, metrics
from core.errors import UserError
from core.files import write_atomically
from core.loop import finite_scores
from core.metric_writers import METRICS_FILE, read_lines
from core.metrics import means_of_users
from core.stages import stage_order, stage_title
from core.termination import repeatable
from core.workdir import Workdir, commit_id

_ON_VALIDATION = " on validation"
# Metrics of one protocol that fit beside each other.
WIDEST = 8


def device() -> str:
    """Describes this machine's devices: '2 CPU cores' or '1 x NVIDIA H100'."""
    if jax.default_backend() == "cpu":
        return f"{os.cpu_count()} CPU cores"
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def save(
    workdir: Workdir,
    sums: metrics.Sums,
    *,
    stage: str,
    split: str,
    protocol: str,
    step: int,
    config: Any,
    origin: dict[str, str],
    users: np.ndarray,
    more: dict[str, Any] | None = None,
    rankings: np.ndarray | None = None,
) -> dict[str, Any]:
    """Writes one row of results.json and what is behind it by example; returns the row.

    Args:
      origin: names the data: `data`, its label, and `data_hash`, the hash of its log.
      users: of the examples that count, int [E].
      rankings: of the examples that count, int [E]: examples of one number are relevant items of
        one ranking, such as the clicks of one search. None: every example has its own.
      more: further entries of the row.
    """
    name = f"per_user/{stage}-{split}-{protocol.replace('/', '-')}"
    own = np.arange(len(users)) if rankings is None else rankings
    ranks = sums.rankings() | {"ranking": np.unique(own, return_inverse=True)[1].astype(np.int32)}
    row = {
        "stage": stage,
        "split": split,
        "protocol": protocol,
        "step": step,
        "examples": sums.count,
        "metrics": {
            metrics.full_name(name, protocol): value for name, value in sums.means().items()
        },
        "selected_on": config.eval.selection + _ON_VALIDATION,
        **origin,
        "data_split": config.data.split,
        "candidates_seed": config.data.candidates_seed,
        "seed": config.seed,
        "commit": commit_id(),
        "device": device(),
        "per_user": f"{name}.npz",
        "ranks": f"{name}.ranks.npz",
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **(more or {}),
    }
    workdir.write_result_row(row, {"user": users, **sums.per_example()}, ranks)
    return row


@contextlib.contextmanager
def testing(stage: str, protocol: str) -> Iterator[None]:
    """Runs one test of a run: a signal ends it, and it is repeated by the same command.

    Raises:
      core.errors.Preempted: SIGTERM or Ctrl-C has arrived.
      core.loop.NotFinite: scores are NaN.
    """
    test = f"the test of stage {stage} against {protocol}"
    remedy = "lower the learning rate or look at the data, and train again in another --workdir"
    with repeatable(test), finite_scores(f"in {test}", remedy):
        yield


def counting(
    users: np.ndarray,
    counted: np.ndarray,
    more: dict[str, Any],
    selection: str,
    rankings: np.ndarray | None = None,
) -> dict[str, Any]:
    """Makes the arguments of `save` of a protocol that may leave out examples.

    Args:
      users: of the examples, [E].
      counted: bool [E], whether an example is ranked.
      more: further entries of the row.
      selection: the metric that decided on validation.
      rankings: of the examples, [E], as of `save`.
    """
    left_out = {} if counted.all() else {"left_out": int(np.sum(~counted))}
    selected = {"selected_on": selection + _ON_VALIDATION}
    of_save = {"users": users[counted], "more": selected | more | left_out}
    return of_save if rankings is None else of_save | {"rankings": rankings[counted]}


def tested(workdir: Workdir) -> set[tuple[str, int, str]]:
    """Returns stage, step and protocol of every row of the test split, alike on all processes.

    `launch.evaluate` may have added rows of validation beside them.
    """
    rows = workdir.read_results()["rows"]
    keys = [(r["stage"], r["step"], r["protocol"]) for r in rows if r["split"] == "test"]
    return {(stage, step, protocol) for stage, step, protocol in distributed.of_first(keys)}


def grid(results: dict[str, Any], split: str) -> tuple[list[str], list[list[str]]]:
    """Returns metrics and one line a stage, in the order of training: its title and values."""
    rows = [row for row in results["rows"] if row["split"] == split]
    columns = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    lines = []
    for stage in sorted({row["stage"] for row in rows}, key=stage_order):
        values: dict[str, float] = {}
        for row in rows:
            if row["stage"] == stage:
                values |= row["metrics"]
        cells = [f"{values[name]:.4f}" if name in values else "" for name in columns]
        lines.append([stage_title(stage), *cells])
    return columns, lines


def title(results: dict[str, Any], split: str) -> str:
    row = next(row for row in results["rows"] if row["split"] == split)
    return (
        f"{row['data']}, {split} split ({row['data_split']}), {row['examples']} examples, seed "
        f"{row['seed']}, commit {row['commit']}; selected on {row['selected_on']}"
    )


def remarks(results: dict[str, Any], split: str) -> list[str]:
    """Returns, in one line each, what a reader of the table should know of its stages."""
    rows = [row for row in results["rows"] if row["split"] == split]
    rising = {row["stage"]: row["step"] for row in rows if row.get("still_improving")}
    lines = [
        f"{stage_title(stage)}: still improving at its last evaluation, after {step:,} "
        "updates; longer training may do better"
        for stage, step in rising.items()
    ]
    measured = {row["stage"]: row["validation"] for row in rows if row.get("validation")}
    for stage, on in measured.items():
        lines += [
            f"{stage_title(stage)}: below {name} on validation ({on['metric']} {on['value']:.4f}, "
            f"{name} {floor:.4f}); find out why before you use it"
            for name, floor in on["floors"].items()
            if on["value"] < floor
        ]
    left_out = {row["protocol"]: row["left_out"] for row in rows if row.get("left_out")}
    return lines + [
        f"{protocol}: without {count:,} examples of users who have touched nearly all items"
        for protocol, count in left_out.items()
    ]


def reported_split(results: dict[str, Any]) -> str:
    """Returns what a finished run is reported on: 'test', or for identifiers the catalogue."""
    splits = [row["split"] for row in results["rows"]]
    return splits[0] if splits and "test" not in splits else "test"


def print_table(results: dict[str, Any], split: str = "test") -> None:
    """Prints the run's table: one line a stage, or one a metric where there are many of these."""
    columns, lines = grid(results, split)
    # Without a terminal's width a table would be cut at 80 columns, protocols and all.
    console = Console(width=None if sys.stdout.isatty() else 160, color_system=None)
    # Names are the data's and the user's: brackets in them are no markup.
    console.print(title(results, split), highlight=False, soft_wrap=True, markup=False)
    for protocol in dict.fromkeys(name.partition("/")[2] for name in columns):
        chosen = [i for i, name in enumerate(columns) if name.partition("/")[2] == protocol]
        table = Table(box=None)
        table.add_column("", no_wrap=True)
        if len(chosen) > WIDEST:
            for line in lines:
                table.add_column(Text(line[0]), justify="right", no_wrap=True)
            for i in chosen:
                table.add_row(Text(columns[i]), *[line[i + 1] for line in lines])
        else:
            for i in chosen:
                table.add_column(Text(columns[i]), justify="right", no_wrap=True)
            for line in lines:
                table.add_row(Text(line[0]), *[line[i + 1] for i in chosen])
        console.print(table)
    for remark in remarks(results, split):
        console.print(remark, highlight=False, soft_wrap=True, markup=False)


def write_summary(workdir: Workdir, label: str) -> None:
    """Writes summary.md and curves.png from what the run saved.

    Args:
      label: of the data.
    """
    results = workdir.read_results()
    method = workdir.read_setting("method", str)
    split = reported_split(results)
    columns, lines = grid(results, split)
    text = [
        f"# {method} on {label}",
        "",
        title(results, split),
        "",
        *markdown_table(columns, [[f"{method}, {stage}", *cells] for stage, *cells in lines]),
        "",
    ]
    for remark in remarks(results, split):
        text += [remark, ""]
    if _draw_curves(workdir, f"{method} on {label}"):
        text += ["![training curves](curves.png)", ""]
    write_atomically(workdir.file("summary.md"), "\n".join(text))


def markdown_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table; one a metric where these are many, so that all can be seen.

    Args:
      columns: names of metrics.
      lines: a name and a value a metric.
    """
    head, body = ["", *columns], [list(line) for line in lines]
    if len(columns) > WIDEST:
        head, *body = (list(cells) for cells in zip(head, *body, strict=True))
    return [
        f"| {' | '.join(head)} |",
        "|---|" + "---:|" * (len(head) - 1),
        *(f"| {' | '.join(line)} |" for line in body),
    ]


_STAGES_ACROSS = 4
_FEW_POINTS = 20


def _draw_curves(workdir: Workdir, label: str) -> bool:
    """Draws what every stage trained on and was selected by; False where nothing was trained.

    Stages share the axis of a metric, so that a hundredth of it looks the same in all of them, and
    the band is as wide as chance: the 95% interval of that metric's mean over test users.
    """
    lines = read_lines(workdir.file(METRICS_FILE))
    if not lines:
        return False
    # What decided, which need not be what the config asked for.
    selected = [row["selected_on"] for row in workdir.read_results()["rows"]]
    selection = selected[0].removesuffix(_ON_VALIDATION)
    stages = sorted({line["stage"] for line in lines}, key=stage_order)
    across = min(len(stages), _STAGES_ACROSS)
    bands = -(-len(stages) // across)
    figure, axes = drawing.pyplot().subplots(
        2 * bands, across, figsize=(4.2 * across, 5.6 * bands), squeeze=False, layout="constrained"
    )
    for axis in axes[-2:, (len(stages) - 1) % across + 1 :].flat:
        axis.axis("off")
    halves = _half_intervals(workdir, selection)
    by_name: dict[str, list[Any]] = {}
    for number, stage in enumerate(stages):
        band, column = divmod(number, across)
        for row, name in enumerate((_training_curve(stage), selection)):
            points = [
                (line["step"], line[name])
                for line in lines
                if line["stage"] == stage and name in line
            ]
            axis = axes[2 * band + row, column]
            by_name.setdefault(name, []).append(axis)
            # A line alone would not show one point.
            few = len(points) < _FEW_POINTS
            steps, values = np.array(points, np.float64).reshape(-1, 2).T
            axis.plot(steps, values, marker="." if row or few else None, linewidth=1.4)
            if row and points and (half := halves.get(stage)) is not None:
                axis.fill_between(steps, values - half, values + half, alpha=0.2, linewidth=0)
            axis.set_xlabel("updates")
            axis.set_ylabel(f"validation {name}" if row else name, fontsize=8)
            axis.grid(alpha=0.3)
        axes[2 * band, column].set_title(stage_title(stage), fontsize=10)
    for axes_of_name in by_name.values():
        limits = [axis.get_ylim() for axis in axes_of_name if axis.lines[0].get_xdata().size]
        for axis in axes_of_name if limits else ():
            axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    below = f"; band: 95% interval over test users of {selection}" if halves else ""
    figure.suptitle(label + below, fontsize=9 if below else None)
    drawing.save(figure, workdir.file("curves.png"), dpi=110)
    return True


def _half_intervals(workdir: Workdir, metric: str) -> dict[str, float]:
    """Returns by stage half of the 95% interval of a metric's mean over test users."""
    halves = {}
    for row in workdir.read_results()["rows"]:
        if row["split"] == "test" and metric in row["metrics"] and "per_user" in row:
            with contextlib.suppress(UserError):  # a picture without its band is a picture
                users, values = workdir.read_per_user(row, metric.partition("/")[0])
                means = means_of_users(values, users)
                if len(means) > 1:
                    halves[row["stage"]] = metrics.half_interval(means)
    return halves


def _training_curve(stage: str) -> str:
    return "train/reward" if stage == "rl" or stage.startswith("rl_") else "train/loss"
