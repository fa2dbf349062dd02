"""Writes compared rows, their tests and their strata as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from core import metrics
from studies.method_tests import MethodTest
from studies.statistics import (
    Pair,
    Row,
    effect_text,
    examples_and_users,
    holm,
    listed,
    p_of_gains,
    p_text,
    shared_seeds,
)


def to_markdown(tables: Mapping[str, tuple[Sequence[Row], Sequence[Pair]]]) -> str:
    """Returns tables as Markdown, with a column a metric: means, then tests of pairs.

    The tests are of the methods, where their seeds allow one, and of these checkpoints.

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
    lines += _of_methods(tested, list(tables))
    lines += [
        "",
        f"| of these checkpoints: second minus first |{columns} seeds | effect d |",
        "|---|" + "---:|" * len(tables) + "---|---|",
    ]
    for (first, second), by_metric in tested.items():
        tests = [_test(by_metric[name]) if name in by_metric else "" for name in tables]
        seeds = "; ".join(dict.fromkeys(_seeds_of(pair) for pair in by_metric.values()))
        effects = [_signed(pair.effect) for pair in by_metric.values()]
        cells = [*tests, seeds, ", ".join(effects)]
        lines.append(f"| {first} -> {second} | {' | '.join(cells)} |")
    # Searches are other examples than clicks.
    of_protocol: dict[str, list[str]] = {}
    for metric, rows in rows_of.items():
        of_protocol.setdefault(examples_and_users(rows[0]), []).append(metric)
    over = [
        sentence if len(of_protocol) == 1 else f"{', '.join(names)}: {sentence}"
        for sentence, names in of_protocol.items()
    ]
    every = [pair for by_metric in tested.values() for pair in by_metric.values()]
    about = about_tests(
        every, list({r.name: r for rows in rows_of.values() for r in rows}.values())
    )
    about += [
        "d is the difference in deviations over users (Cohen's d_z).",
        "Differences with their 95% interval; p by Holm's method over the pairs of a metric.",
    ]
    return "\n".join([*lines, "", *about, *over])


def _of_methods(
    tested: Mapping[tuple[str, str], Mapping[str, Pair]], metrics_shown: Sequence[str]
) -> list[str]:
    """Returns the lines of the table of methods; none where no pair of methods was tested."""
    lines = []
    for (first, second), by_metric in tested.items():
        tests = {name: pair.of_methods for name, pair in by_metric.items() if pair.of_methods}
        if not tests:
            continue
        cells = [method_cell(tests[name]) if name in tests else "" for name in metrics_shown]
        seeds = "; ".join(dict.fromkeys(f"{t.seeds[0]} and {t.seeds[1]}" for t in tests.values()))
        lines.append(f"| {first} -> {second} | {' | '.join([*cells, seeds])} |")
    if not lines:
        return []
    head = "".join(f" {name} |" for name in metrics_shown)
    return [
        "",
        f"| of the methods: second minus first |{head} seeds of each |",
        "|---|" + "---:|" * len(metrics_shown) + "---|",
        *lines,
    ]


def method_cell(test: MethodTest) -> str:
    """Writes a test of methods: the difference, its interval, p after Holm's method, Hedges' g."""
    text = f"{test.difference:+.4f} [{test.low:+.4f}, {test.high:+.4f}], p {p_text(test.p_holm)}"
    return text if test.effect is None else f"{text}, g {effect_text(test.effect)}"


def about_tests(pairs: Sequence[Pair], rows: Sequence[Row]) -> list[str]:
    """Says in sentences what the tests of some pairs are of, and which methods have none."""
    lines = []
    if any(pair.of_methods for pair in pairs):
        lines.append(
            "Of the methods: seeds and users are random factors (mixed model by analysis of "
            "variance, Student's t with Satterthwaite's degrees of freedom), so that another seed "
            "and other users would tell the same; g is the difference in deviations over seeds "
            "(Hedges), where there are enough of them."
        )
    single = [row.name for row in rows if len(row.seeds) < 2 and not row.fitted]
    if single:
        lines.append(
            f"With one seed of {', '.join(single)} no test of methods is possible: two runs of one "
            "method differ as well. Train two seeds or more; three or more find more."
        )
    return [
        *lines,
        "Of these checkpoints: paired over users, of these trained networks alone; it does not say "
        "that another seed would tell the same.",
    ]


def _signed(effect: float | None) -> str:
    return "none" if effect is None else f"{effect:+.2f}"


def _mean_and_spread(row: Row, apart: bool) -> list[str]:
    """Returns a row's mean with its deviation over seeds, in two cells or one."""
    mean = f"{np.mean(row.means):.4f}"
    spread = f"{np.std(row.means, ddof=1):.4f}" if len(row.means) > 1 else ""
    if apart:
        return [mean, spread or "one seed"]
    return [f"{mean} ± {spread}" if spread else mean]


def _test(pair: Pair) -> str:
    return f"{pair.difference:+.4f} [{pair.low:+.4f}, {pair.high:+.4f}], p {p_text(pair.p_holm)}"


def _seeds_of(pair: Pair) -> str:
    seeds = ", ".join(map(str, pair.seeds))
    left = ", ".join(map(str, pair.left_out))
    return f"{seeds} (not {left}, which one of them lacks)" if left else seeds


def strata_to_markdown(rows: Sequence[Row], groups: dict[str, np.ndarray], metric: str) -> str:
    """Returns means of every row over the examples of each stratum, as Markdown.

    In brackets stands the mean gain of the stratum's users over the first row, with its 95%
    interval; below, the p of every gain, corrected by Holm's method over all of them.

    Args:
      groups: label -> bool [E].
    """
    sizes = {label: len(rows[0].per_user(chosen)) for label, chosen in groups.items()}
    lines = [
        f"| {metric} | " + " | ".join(f"{k} ({n} users)" for k, n in sizes.items()) + " |",
        "|---|" + "---:|" * len(groups),
    ]
    tested: dict[str, list[float | None]] = {}
    for row in rows:
        cells = []
        for chosen in groups.values():
            cell = f"{row.per_example[chosen].mean():.4f}"
            if row is not rows[0]:
                seeds = shared_seeds(rows[0], row)
                gain = row.per_user(chosen, seeds) - rows[0].per_user(chosen, seeds)
                of_row = tested.setdefault(row.name, [])
                of_row.append(p_of_gains(gain) if len(gain) > 1 else None)
                if len(gain) > 1:
                    cell += f" ({gain.mean():+.4f} ± {metrics.half_interval(gain):.4f})"
            cells.append(cell)
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    lines += _p_of_strata(tested, list(groups))
    uneven = [row for row in rows[1:] if {*row.seeds} != {*rows[0].seeds}]
    lines += [""] * bool(uneven)
    lines += [
        f"The gain of {row.name} is over {listed(shared_seeds(rows[0], row))}, which both have."
        for row in uneven
    ]
    return "\n".join(lines)


def _p_of_strata(tested: Mapping[str, Sequence[float | None]], labels: Sequence[str]) -> list[str]:
    """Returns the lines of the table of a strata table's p, over users of these checkpoints."""
    values = [p for of_row in tested.values() for p in of_row]
    if all(p is None for p in values):
        return []
    after_holm = iter(holm([p for p in values if p is not None]))
    lines = [
        "",
        f"| p of these checkpoints | {' | '.join(labels)} |",
        "|---|" + "---:|" * len(labels),
    ]
    for name, of_row in tested.items():
        cells = ["" if p is None else p_text(next(after_holm)) for p in of_row]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    about = "p of the gains over the first row, by Holm's method over the table."
    return [*lines, "", about]
