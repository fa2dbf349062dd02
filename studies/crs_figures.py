"""Makes CRS's Figure 2, Table 3 and Figure 3 from finished runs."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence

import numpy as np

from core import drawing
from core.errors import UserError
from core.files import write_atomically, writing
from core.workdir import Workdir
from crs_jax.self_evolve import rl_stage, sft_only_stage, sft_stage
from input_pipelines.search_protocol import PROTOCOL
from studies import strata
from studies.ablation.tables import mean_text
from studies.compare import read_rows
from studies.comparison_tables import strata_to_markdown
from studies.statistics import Pair, Row, compare_pairs, corrected, p_text

_SHOWN = ("ndcg@10", "hr@10")  # Figure 2
_TABLE = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10")  # Table 3
_TESTED = "ndcg@10"
_GROUPED = "hr@10"  # Figure 3
_TITLES = {"r_grpo": "R-GRPO", "grpo": "GRPO"}


@dataclasses.dataclass(frozen=True)
class Runs:
    """Runs of CRS on the same searches.

    Attributes:
      names: in the order that they were given, each once.
      iterations: of the self-evolving loop, the most of any run.
      rows: by metric, name and stage.
      origin: what the numbers are from, a line.
    """

    names: tuple[str, ...]
    iterations: int
    rows: dict[tuple[str, str, str], Row]
    origin: str

    def stages(self) -> list[str]:
        """Returns the stages of Figure 2: M_sft^0, M_rl^0, M_sft^1, ..."""
        rounds = range(self.iterations)
        later = [stage for i in rounds for stage in (rl_stage(i), sft_stage(i + 1))]
        return [sft_stage(0), *later]

    def last(self, name: str) -> Row:
        """Returns hr@10 after the last stage of the loop that all seeds of a name have."""
        of_stages = [self.rows.get((_GROUPED, name, stage)) for stage in self.stages()]
        there = [row for row in of_stages if row is not None]
        return [row for row in there if len(row.seeds) == len(there[0].seeds)][-1]


def read(workdirs: Sequence[str], names: Sequence[str]) -> Runs:
    """Reads the runs' test results over the catalogue.

    Args:
      names: of the workdirs; empty: of their algorithms.

    Raises:
      UserError: a run of another method, or that has not ended its distillation; or as
        `compare.read_rows`.
    """
    configs = [Workdir(path).read_config() for path in workdirs]
    for path, config in zip(workdirs, configs, strict=True):
        if config.get("method") != "crs":
            raise UserError(
                f"expected a run of crs in {path}, found one of {config.get('method')}; pass other "
                "methods to --beside"
            )
    if not names:
        algorithms = [Workdir(path).read_setting("rl.algorithm", str) for path in workdirs]
        names = [_TITLES.get(algorithm, algorithm) for algorithm in algorithms]
    rows: dict[tuple[str, str, str], Row] = {}
    for metric in _TABLE:
        for row in read_rows(workdirs, f"{metric}/{PROTOCOL}", "test", names):
            rows[metric, row.method, row.stage] = row
    ordered = tuple(dict.fromkeys(names))
    for name in ordered:
        if (_GROUPED, name, sft_stage(0)) not in rows:
            raise UserError(
                f"expected a run of {name} that has ended its distillation, found none; let it "
                "train on"
            )
    iterations = max(Workdir(path).read_setting("evolve.iterations", int) for path in workdirs)
    return Runs(ordered, iterations, rows, _origin(workdirs))


def _origin(workdirs: Sequence[str]) -> str:
    every = [row for path in workdirs for row in Workdir(path).read_results()["rows"]]
    tested = [row for row in every if (row["split"], row["protocol"]) == ("test", PROTOCOL)]
    commits, devices = (
        ", ".join(dict.fromkeys(row[key] for row in tested)) for key in ("commit", "device")
    )
    split, examples = tested[0]["data_split"], tested[0]["examples"]
    made = f"commit {commits}, {devices}"
    return f"{tested[0]['data']}, test split ({split}), {examples} searches, {PROTOCOL}, {made}"


def figure_2(runs: Runs) -> list[str]:
    """Writes the stages as a Markdown table: a line a name and stage, the stages without RL
    below.
    """
    header = " | ".join(_SHOWN)
    lines = [f"| run | stage | seeds | {header} |", "|---|---|---|" + "---:|" * len(_SHOWN)]
    for name in runs.names:
        for stage in (*runs.stages(), *_alone(runs)[1:]):
            of_metrics = [runs.rows.get((metric, name, stage)) for metric in _SHOWN]
            present = [row for row in of_metrics if row is not None]
            if present:
                cells = " | ".join(mean_text(row.means) for row in present)
                seeds = ", ".join(map(str, present[0].seeds))
                lines.append(f"| {name} | {stage} | {seeds} | {cells} |")
    return lines


def _alone(runs: Runs) -> list[str]:
    """Returns the stages of the variant without RL, which starts as the loop does."""
    return [sft_stage(0), *(sft_only_stage(i + 1) for i in range(runs.iterations))]


def table_3(runs: Runs) -> tuple[list[str], list[tuple[str, Pair]]]:
    """Writes each RL stage's metrics by name as Markdown; returns also the tests behind its last
    column.

    A name is tested against the last one, as R-GRPO is against GRPO in the paper, where both have
    the same seeds; both p are corrected over the whole table.
    """
    tested: list[tuple[str, Pair]] = []
    stages = [rl_stage(i) for i in range(runs.iterations)]
    for stage in stages:
        named = [runs.rows.get((_TESTED, name, stage)) for name in runs.names]
        base = named[-1]
        for row in named[:-1]:
            if row and base and sorted(row.seeds) == sorted(base.seeds):
                tested += [(stage, pair) for pair in compare_pairs([base, row])]
    of_table = corrected([pair for _, pair in tested])
    tested = [(stage, pair) for (stage, _), pair in zip(tested, of_table, strict=True)]
    cells = {(stage, pair.second): pair for stage, pair in tested}
    lines = [
        f"| model | run | seeds | {' | '.join(_TABLE)} | {_TESTED}: difference, p of these "
        "checkpoints (Holm) | p over seeds (Holm) |",
        "|---|---|---|" + "---:|" * (len(_TABLE) + 2),
    ]
    for stage in stages:
        for name in runs.names:
            if (_TESTED, name, stage) not in runs.rows:
                continue
            row = runs.rows[_TESTED, name, stage]
            means = [mean_text(runs.rows[metric, name, stage].means) for metric in _TABLE]
            pair, test = cells.get((stage, row.name)), ["", ""]
            if pair is not None:
                between = f"[{pair.low:+.4f}, {pair.high:+.4f}]"
                of_methods = p_text(pair.of_methods.p_holm) if pair.of_methods else ""
                test = [f"{pair.difference:+.4f} {between}, p {p_text(pair.p_holm)}", of_methods]
            seeds = ", ".join(map(str, row.seeds))
            lines.append(f"| {stage} | {name} | {seeds} | {' | '.join([*means, *test])} |")
    return lines, tested


def _draw_figure_2(runs: Runs, path: str) -> None:
    figure, axes = drawing.pyplot().subplots(1, 2, figsize=(9.2, 4.0), constrained_layout=True)
    loop = runs.stages()
    # Round i of the variant without RL stands where the loop has M_sft^i.
    places = {stage: 2 * i for i, stage in enumerate(_alone(runs))}
    for axis, metric in zip(axes, _SHOWN, strict=True):
        for colour, name in enumerate(runs.names):
            for stages, style, label in (
                ({stage: i for i, stage in enumerate(loop)}, "o-", name),
                (places, "s--", f"{name}, without RL"),
            ):
                points = [
                    (place, runs.rows[metric, name, stage])
                    for stage, place in stages.items()
                    if (metric, name, stage) in runs.rows
                ]
                if style == "s--" and len(points) < 2:
                    continue
                means = [np.mean(row.means) for _, row in points]
                spreads = [np.std(r.means, ddof=1) if len(r.means) > 1 else 0 for _, r in points]
                axis.errorbar(
                    [place for place, _ in points],
                    means,
                    yerr=spreads,
                    fmt=style,
                    capsize=3,
                    color=f"C{colour}",
                    alpha=1.0 if style == "o-" else 0.6,
                    label=label,
                )
        axis.set_xticks(range(len(loop)), loop, rotation=30)
        axis.set_ylabel(metric)
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    drawing.save(figure, path, dpi=120)


def _draw_figure_3(rows: Sequence[Row], groups: dict[str, np.ndarray], path: str) -> None:
    figure, axis = drawing.pyplot().subplots(
        figsize=(6.4, 3.6 + 0.2 * len(rows)), constrained_layout=True
    )
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        values = [row.per_example[chosen].mean() for chosen in groups.values()]
        places = np.arange(len(groups)) + (i - (len(rows) - 1) / 2) * width
        axis.bar(places, values, width, label=row.name)
    axis.set_xticks(range(len(groups)), list(groups))
    axis.set_xlabel("asked before")
    axis.set_ylabel(_GROUPED)
    axis.grid(alpha=0.3, axis="y")
    axis.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    drawing.save(figure, path, dpi=120)


def _titled(row: Row) -> Row:
    """Names a row by its method, stage and seeds."""
    seeds = f"seeds {', '.join(map(str, row.seeds))}" if len(row.seeds) > 1 else "one seed"
    return dataclasses.replace(row, name=f"{row.method}, {row.stage}, {seeds}")


def write(runs: Runs, workdir: str, beside: Sequence[str], out: str) -> str:
    """Writes the folder; returns the Markdown.

    Args:
      workdir: one of the runs, whose data tell the groups of users.
      beside: folders of runs of other methods.

    Raises:
      UserError: a run beside that was not tested on the same searches.
    """
    metric = f"{_GROUPED}/{PROTOCOL}"
    last = [_titled(runs.last(name)) for name in runs.names]
    # Read beside a run of CRS: runs that were tested on other searches are refused.
    others = read_rows([workdir, *beside], metric, "test") if beside else []
    rows = [*last, *(row for row in others if row.method != "crs")]
    groups = strata.of("queries", workdir, "test", PROTOCOL, len(rows[0].users))
    table, tested = table_3(runs)
    text = "\n".join(
        [
            "# CRS",
            "",
            runs.origin,
            "",
            "## Figure 2: stage by stage",
            "",
            *figure_2(runs),
            "",
            "![Figure 2](figure2.png)",
            "",
            "## Table 3: after each RL stage",
            "",
            *table,
            "",
            "## Figure 3: by the queries asked before",
            "",
            strata_to_markdown(rows, groups, metric),
            "",
            "![Figure 3](figure3.png)",
            "",
        ]
    )
    values = {
        "origin": runs.origin,
        "rows": [
            {"metric": key[0], "run": key[1], "stage": key[2], "seeds": r.seeds, "means": r.means}
            for key, r in runs.rows.items()
        ],
        "table3": [{"stage": stage, **dataclasses.asdict(pair)} for stage, pair in tested],
        "figure3": {
            row.name: {label: float(row.per_example[c].mean()) for label, c in groups.items()}
            for row in rows
        },
    }
    with writing(out):
        os.makedirs(out, exist_ok=True)
    _draw_figure_2(runs, os.path.join(out, "figure2.png"))
    _draw_figure_3(rows, groups, os.path.join(out, "figure3.png"))
    write_atomically(os.path.join(out, "table.json"), json.dumps(values, indent=2) + "\n")
    write_atomically(os.path.join(out, "table.md"), text)
    return text
