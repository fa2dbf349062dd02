"""Tests a method forward in time: window by window it is trained on what came before.

Every window is a run of its own below the backtest's folder, `windows/NUMBER/run`, on the log as it
was at the window's end, `windows/NUMBER/data`. It is trained anew, or goes on from the window
before (`experiments.continued`).
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Collection
from typing import Any

import numpy as np
from ml_collections import config_dict

from core.errors import UserError
from core.files import write_atomically
from core.stages import stage_order, stage_title
from core.workdir import Workdir, check_no_file, has_only_scaffolding
from experiments.resolve import resolve
from experiments.train import train
from input_pipelines import prepared_log, times
from input_pipelines.dataset import Dataset
from input_pipelines.log import Log
from input_pipelines.log_checks import validate_log
from input_pipelines.time_windows import cut_times, window_log

_LOG = logging.getLogger(__name__)
RESULTS, TABLE = "backtest.json", "backtest.md"


def backtest(
    config: config_dict.ConfigDict,
    folder: str,
    windows: int,
    *,
    continues: bool = False,
    given: Collection[str] = (),
) -> dict[str, Any]:
    """Trains and tests every window; the same call goes on where it was stopped.

    Args:
      config: a config as its file returns it; its split is not used.
      folder: of the backtest.
      windows: how many, each of as many clicks as the others.
      continues: whether a window goes on from the one before, instead of training anew.
      given: as of `experiments.train.train`.

    Returns:
      What `backtest.json` holds: {'windows': [...]}, each with its times, sizes and result rows.

    Raises:
      UserError: a mistake in the config or the folder, or data without times of a clock.
      core.errors.Preempted: SIGTERM or Ctrl-C; the state is saved.
    """
    config = resolve(config, given)
    folder = Workdir(folder).path
    check_no_file(folder)
    ours = ("windows", RESULTS, TABLE)
    if os.path.isdir(folder) and not has_only_scaffolding(folder, *ours):
        raise UserError(
            f"expected {folder} to be empty or a backtest's folder, found other files in it; pass "
            "another --workdir"
        )
    data = Dataset(config)
    log, cuts = data.log, cut_times(data.log, windows)
    tested: list[dict[str, Any]] = []
    before = ""
    for number, (start, end) in enumerate(itertools.pairwise(cuts), 1):
        place = os.path.join(folder, "windows", str(number))
        of_window = _kept(log, start, end, os.path.join(place, "data"), data.directory)
        own = config_dict.ConfigDict(config.to_dict())
        own.data_dir, own.data.split = os.path.join(place, "data"), "published"
        shown = [times.shown(time, log.time_unit) for time in (start, end)]
        _LOG.info("window %d of %d: tests %s to %s", number, windows, *shown)
        run = os.path.join(place, "run")
        results = train(own, run, continue_from=before if continues else "")
        tested.append(
            {
                "window": number,
                "from": shown[0],
                "to": shown[1],
                "rows": [row for row in results["rows"] if row["split"] == "test"],
                **_sizes(of_window),
            }
        )
        before = run
    found = {
        "data": data.label,
        "data_hash": log.hash,
        "method": config.method,
        "seed": config.seed,
        "continues": continues,
        "windows": tested,
    }
    write_atomically(Workdir(folder).file(RESULTS), json.dumps(found, indent=2) + "\n")
    write_atomically(Workdir(folder).file(TABLE), table(found))
    return found


def _kept(log: Log, start: int, end: int, folder: str, source: str) -> Log:
    """Writes a window's log, or opens it where it is; returns it.

    Raises:
      UserError: another log is there.
    """
    made = window_log(log, start, end)
    if not prepared_log.is_prepared(folder):
        validate_log(made)
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        prepared_log.save_log(made, folder, prepared_log.read_origin(source))
    kept = prepared_log.load_log(folder)
    if kept.hash != made.hash:
        raise UserError(
            f"expected the window's log {made.hash} in {folder}, found {kept.hash} of other data "
            "or another number of windows; pass another --workdir"
        )
    return kept


def _sizes(log: Log) -> dict[str, int]:
    """Counts a window's clicks, and the tested ones that training could not know."""
    train, test = (np.asarray(log.published[f"{part}_target_row"]) for part in ("train", "test"))
    users = np.repeat(np.arange(log.num_users + 1), np.diff(log.rec_offsets))
    items = np.asarray(log.rec_items)
    return {
        "training_clicks": len(train),
        "test_clicks": len(test),
        "of_new_items": int((~np.isin(items[test], items[train])).sum()),
        "of_new_users": int((~np.isin(users[test], users[train])).sum()),
    }


def table(found: dict[str, Any]) -> str:
    """Returns the results of a backtest as Markdown, a row a window and stage; last the means.

    Means are over windows, each counting once.
    """
    columns = list(
        dict.fromkeys(
            name for window in found["windows"] for row in window["rows"] for name in row["metrics"]
        )
    )
    how = "each goes on from the one before" if found["continues"] else "each trained anew"
    windows = found["windows"]
    lines = [
        f"{found['method']} on {found['data']}, seed {found['seed']}: {len(windows)} windows, "
        f"{how}; one run a window",
        "",
        "| tested from | to | stage | training clicks | tested | of new items | of new users | "
        + " | ".join(columns)
        + " |",
        "|---|---|---|" + "---:|" * (4 + len(columns)),
    ]
    stages = {row["stage"] for window in windows for row in window["rows"]}
    every: dict[tuple[str, str], list[float]] = {}
    for window in windows:
        for stage in sorted(stages, key=stage_order):
            values = {
                name: value
                for row in window["rows"]
                if row["stage"] == stage
                for name, value in row["metrics"].items()
            }
            for name, value in values.items():
                every.setdefault((stage, name), []).append(value)
            counts = ("training_clicks", "test_clicks", "of_new_items", "of_new_users")
            cells = [window["from"], window["to"], stage_title(stage)]
            cells += [f"{window[name]:,}" for name in counts]
            cells += [f"{values[name]:.4f}" if name in values else "" for name in columns]
            lines.append(f"| {' | '.join(cells)} |")
    for stage in sorted(stages, key=stage_order):
        means = [every.get((stage, name)) for name in columns]
        cells = ["mean", "", stage_title(stage), "", "", "", ""]
        cells += [f"{np.mean(values):.4f}" if values else "" for values in means]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
