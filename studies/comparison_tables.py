"""Writes compared rows, their tests and their strata as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from core import metrics
from studies.statistics import Pair, Row, examples_and_users, listed, shared_seeds


def to_markdown(tables: Mapping[str, tuple[Sequence[Row], Sequence[Pair]]]) -> str:
    """Returns two tables as Markdown: means, and tests, with a column a metric.

    Args:
      tables: rows and their pairs by metric; the rows of all are of the same runs and stages.
    """
    rows_of = {metric: rows for metric, (rows, _) in tables.items()}
    columns = "".join(f" {metric} |" for metric in tables)
    deviations = " deviation over seeds |" if len(tables) == 1 else ""
    lines = [
        f"| method |{columns}{deviations} seeds |",
        "|---|" + "---:|" * (len(tables) + bool(deviations)) + "---|",
    ]
    keys = dict.fromkeys((r.config, r.stage) for rows in rows_of.values() for r in rows)
    for key in keys:
        of_metric = {
            metric: row
            for metric, rows in rows_of.items()
            for row in rows
            if (row.config, row.stage) == key
        }
        means: list[str] = []
        for metric in tables:
            row = of_metric.get(metric)
            means += _mean_and_spread(row, len(tables) == 1) if row else [""]
        name = max((row.name for row in of_metric.values()), key=len)
        seeds = "; ".join(dict.fromkeys(", ".join(map(str, r.seeds)) for r in of_metric.values()))
        lines.append(f"| {name} | {' | '.join([*means, seeds])} |")
    tested: dict[tuple[str, str], dict[str, Pair]] = {}
    for metric, (_, pairs) in tables.items():
        for pair in pairs:
            tested.setdefault((pair.first, pair.second), {})[metric] = pair
    if not tested:
        return "\n".join(lines)
    lines += [
        "",
        f"| pair: second minus first |{columns} seeds |",
        "|---|" + "---:|" * len(tables) + "---|",
    ]
    for (first, second), by_metric in tested.items():
        tests = [_test(by_metric[name]) if name in by_metric else "" for name in tables]
        seeds = "; ".join(dict.fromkeys(_seeds_of(pair) for pair in by_metric.values()))
        lines.append(f"| {first} -> {second} | {' | '.join([*tests, seeds])} |")
    # Searches are other examples than clicks.
    of_protocol: dict[str, list[str]] = {}
    for metric, rows in rows_of.items():
        of_protocol.setdefault(examples_and_users(rows[0]), []).append(metric)
    over = [
        sentence if len(of_protocol) == 1 else f"{', '.join(names)}: {sentence}"
        for sentence, names in of_protocol.items()
    ]
    about = "Differences with their 95% interval; p by Holm's method over the pairs of a metric."
    return "\n".join([*lines, "", about, *over])


def _mean_and_spread(row: Row, apart: bool) -> list[str]:
    """Returns a row's mean with its deviation over seeds, in two cells or one."""
    mean = f"{np.mean(row.means):.4f}"
    spread = f"{np.std(row.means, ddof=1):.4f}" if len(row.means) > 1 else ""
    if apart:
        return [mean, spread or "one seed"]
    return [f"{mean} ± {spread}" if spread else mean]


def _test(pair: Pair) -> str:
    return f"{pair.difference:+.4f} [{pair.low:+.4f}, {pair.high:+.4f}], p {pair.p_holm:.2g}"


def _seeds_of(pair: Pair) -> str:
    seeds = ", ".join(map(str, pair.seeds))
    left = ", ".join(map(str, pair.left_out))
    return f"{seeds} (not {left}, which one of them lacks)" if left else seeds


def strata_to_markdown(rows: Sequence[Row], groups: dict[str, np.ndarray], metric: str) -> str:
    """Returns means of every row over the examples of each stratum, as Markdown.

    In brackets stands the mean gain of the stratum's users over the first row, with its 95%
    interval.

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
            if row is not rows[0]:
                seeds = shared_seeds(rows[0], row)
                gain = row.per_user(chosen, seeds) - rows[0].per_user(chosen, seeds)
                if len(gain) > 1:
                    cell += f" ({gain.mean():+.4f} ± {metrics.half_interval(gain):.4f})"
            cells.append(cell)
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    uneven = [row for row in rows[1:] if {*row.seeds} != {*rows[0].seeds}]
    lines += [""] * bool(uneven)
    lines += [
        f"The gain of {row.name} is over {listed(shared_seeds(rows[0], row))}, which both have."
        for row in uneven
    ]
    return "\n".join(lines)
