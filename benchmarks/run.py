"""Times training, scoring, reasoning steps, catalogue growth, ranking, GRPO, reading and UniSAR."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.suites import SCALES, SUITES, Bench
from core.errors import UserError
from core.files import write_atomically
from core.workdir import check_out, commit_id


def chosen_suites(suites: list[str]) -> list[str]:
    """Returns the suites that --suite names, each once; all of them where 'all' is among them.

    Raises:
      UserError: none, or an unknown one.
    """
    unknown = [suite for suite in suites if suite not in ("all", *SUITES)]
    if unknown or not suites:
        raise UserError(
            f"expected --suite of all or {', '.join(SUITES)}, found {(unknown or [''])[0]!r}; pass "
            "these, separated by commas"
        )
    return list(SUITES) if "all" in suites else list(dict.fromkeys(suites))


def benchmark(suites: list[str], scale: str, dtype: str, config: Any) -> dict[str, Any]:
    """Runs suites at one of `SCALES`; returns what --json writes.

    Args:
      suites: as --suite names them.

    Raises:
      UserError: as `chosen_suites`.
    """
    chosen = chosen_suites(suites)
    bench = Bench(SCALES[scale], dtype, config)
    bandwidth = bench.bandwidth()
    for suite in chosen:
        bench.run(suite)
    return {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "commit": commit_id(),
        "jax": jax.__version__,
        "scale": scale,
        "dtype": dtype,
        "shapes": dataclasses.asdict(SCALES[scale]),
        "matmul_gflops": statistics.median(bench.rates) / 1e9,
        "matmul_gflops_each": [rate / 1e9 for rate in bench.rates],
        "copy_gb_per_s": bandwidth / 1e9,
        "rows": [dataclasses.asdict(row) for row in bench.rows],
        "skipped": bench.skipped,
    }


def run(suites: list[str], scale: str, dtype: str, config: Any, out: str | None) -> None:
    """Runs suites as `benchmark` does, prints their table and writes the figures to `out`.

    Raises:
      UserError: as `benchmark`, or `out` could not be written, which is seen before timing.
    """
    if out:
        check_out(out, "--json")
    figures = benchmark(suites, scale, dtype, config)
    print_table(figures)
    if out:
        write_atomically(out, json.dumps(figures, indent=2) + "\n")


def print_table(results: dict[str, Any]) -> None:
    title = (
        f"{results['device']}, {results['cores']} cores, {results['dtype']}, "
        f"commit {results['commit']}: matmul {results['matmul_gflops']:.0f} GFLOP/s, "
        f"copy {results['copy_gb_per_s']:.1f} GB/s"
    )
    table = Table(title=title)
    for name in ("suite", "what", "figure", "unit", "share of matmul", "compiled in", "mark"):
        table.add_column(name, justify="right" if name == "figure" else "left")
    for row in results["rows"]:
        share = "" if row["share"] is None else f"{100 * row['share']:.0f}%"
        compiled = row["details"].get("compile_seconds")
        verdict = {None: "", True: " (met)", False: " (MISSED)"}[row["met"]]
        table.add_row(
            row["suite"],
            row["name"],
            f"{row['value']:,.4g}" if row["value"] < 1000 else f"{row['value']:,.0f}",
            row["unit"],
            share,
            "" if compiled is None else f"{compiled:.1f} s",
            row["mark"] + verdict,
        )
    console = Console(width=None if Console().is_terminal else 140, color_system=None)
    console.print(table)
    for suite, reason in results["skipped"].items():
        console.print(f"{suite}: skipped, {reason}")
