"""Runs a sweep of LCR-SER and tables it."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Collection
from typing import Any

from ml_collections import config_dict

from core import run_schema
from core.errors import UserError
from core.files import read_json, write_atomically
from core.termination import watched
from core.workdir import Workdir, check_no_file, has_only_scaffolding
from experiments.resolve import resolve
from input_pipelines.dataset import Dataset
from studies.ablation import figure2, figures, tables
from studies.ablation.arms import run_arms
from studies.ablation.runs import Run, TrainArms, check_runs, run_all
from studies.ablation.sweeps import Setting, Sweep, parse_sweep
from studies.shares import share_of

_PLAN = "sweep.json"


def ablate(
    config: Any,
    sweep_text: str,
    workdir_path: str,
    seeds: int = 1,
    metric: str = "ndcg@5/neg99",
    given: Collection[str] = (),
    share: str = "",
    train: TrainArms = run_arms,
) -> str:
    """Trains what the sweep needs in `workdir_path` and writes its table.

    Args:
      config: as its file returns it.
      sweep_text: NAME or NAME:VALUE,VALUE,...
      seeds: how many, from the config's own seed on.
      metric: with its protocol; it is tested and drawn.
      given: keys that the command line set (`experiments.resolve.resolve`).
      share: 'I/N' trains every N-th arm from number I on; '' all of them.
      train: trains one stage of arms of LCR-SER side by side.

    Returns:
      The table as Markdown; where other shares have arms to train, a line that says so.

    Raises:
      UserError: a mistake in the sweep, the config, the data or the workdir.
      core.errors.Preempted: SIGTERM or Ctrl-C; every arm is saved.
    """
    config = resolve(config, given)
    sweep = parse_sweep(sweep_text, config, given)
    part = _share(share, sweep)
    if seeds < 1:
        raise UserError(f"expected --seeds of 1 or more, found {seeds}; correct it")
    name, _, protocol = metric.partition("/")
    if name not in config.eval.metrics or protocol not in config.eval.protocols:
        raise UserError(
            f"expected --metric of config.eval.metrics against one of config.eval.protocols, found "
            f"{metric!r}; for instance {config.eval.selection}"
        )
    workdir = Workdir(workdir_path)
    settled = _settled(config, sweep, seeds)
    _check_sweep_workdir(workdir, settled)
    data = Dataset(config)
    figures.check_users(sweep, data)
    runs = _runs(config, sweep, seeds, workdir)
    every = list({run.path: run for of_one in runs.values() for run in of_one}.values())
    for run in every:
        Workdir(run.path).check_log(data.log.hash)  # finished ones too: the table shows them
    done = _done(workdir)
    first, step = part or (0, 1)
    wanted = [run for run in every[first::step] if run.name not in done]
    if sweep.name == "figure2":
        experiments = None
        figure2.check_runs(wanted, data)
    else:
        experiments = check_runs(wanted, data)
    workdir.lock(first if part else None)
    with workdir:
        with workdir.alone("sweep"):
            _check_sweep_workdir(workdir, settled)  # another share may have begun it meanwhile
            if not os.path.lexists(os.path.join(workdir.path, _PLAN)):
                text = json.dumps(run_schema.stamped(settled), indent=2) + "\n"
                write_atomically(workdir.file(_PLAN), text)
        workdir.remove_abandoned()
        with watched():
            if experiments is None:
                stopped = figure2.run_all(wanted, data, workdir)
            else:
                stopped = run_all(wanted, data, experiments, train)
        name = f"arms-{first}-of-{step}.json" if part else "arms.json"
        own = _read(workdir, name) | {run.name: stopped.get(run.name) for run in wanted}
        write_atomically(workdir.file(name), json.dumps(own, indent=2) + "\n")
        done = _done(workdir)
        left = [run.name for run in every if run.name not in done]
        if left:
            return (
                f"share {share} is through; {len(left)} of {len(every)} arms are other shares', "
                "and the last of these writes the table"
            )
        stopped = {run.name: done[run.name] for run in every if done[run.name]}
        paths = {label: [run.path for run in of_one] for label, of_one in runs.items()}
        broken = {run.path for run in every if run.name in stopped}
        rows = tables.read_sweep(sweep, paths, metric, broken)
        finished = {
            label: [p for p in folders if p not in broken] for label, folders in paths.items()
        }
        heading = tables.title(config, data, rows)
        beside = figures.beside(sweep, finished, workdir, config, data, metric)
        return tables.write(workdir, sweep, rows, metric, heading, stopped, beside)


def _runs(
    config: config_dict.ConfigDict, sweep: Sweep, seeds: int, workdir: Workdir
) -> dict[str, list[Run]]:
    """Makes the runs of every setting, one a seed; settings with the same keys share theirs."""
    made: dict[str, list[Run]] = {}
    by_changes: dict[str, list[Run]] = {}
    for setting in sweep.settings:
        key = json.dumps(setting.changes, sort_keys=True)
        if key not in by_changes:
            by_changes[key] = [
                run_of(config, setting, config.seed + i, workdir) for i in range(seeds)
            ]
        made[setting.label] = by_changes[key]
    return made


def run_of(config: config_dict.ConfigDict, setting: Setting, seed: int, workdir: Workdir) -> Run:
    """Returns the run of one setting and seed, whose folder lies in the sweep's `workdir`."""
    changed = config_dict.ConfigDict(config.to_dict())
    folder = setting.label.replace(" ", "").replace("/", "-")
    path = os.path.join(workdir.path, "arms", folder, f"seed{seed}")
    changes = dict(setting.changes)
    if "data.search_filter" in changes:  # a key that configs of single runs do not have
        threshold = changes.pop("data.search_filter")
        # From the arm's folder: the sweep may move.
        vectors = os.path.relpath(os.path.join(workdir.path, figure2.VECTORS), path)
        changed.data.search_filter = {"vectors": vectors, "threshold": threshold}
    changed.update_from_flattened_dict(changes)
    changed.seed = seed
    return Run(f"{setting.label}, seed {seed}", changed, path)


def _settled(config: config_dict.ConfigDict, sweep: Sweep, seeds: int) -> dict[str, Any]:
    """Returns what a workdir's sweep is, beside where things lie."""
    values = config.to_dict()
    values.pop("cache_dir", None)
    return json.loads(json.dumps({"sweep": sweep.text, "seeds": seeds, "config": values}))


def _check_sweep_workdir(workdir: Workdir, settled: dict[str, Any]) -> None:
    check_no_file(workdir.path)
    plan = os.path.join(workdir.path, _PLAN)
    if os.path.lexists(plan):
        before = run_schema.unstamped(_read(workdir, _PLAN), plan)
        for key in ("sweep", "seeds", "config"):
            if before.get(key) != settled[key]:
                what = "another config" if key == "config" else repr(settled[key])
                held = "its own" if key == "config" else repr(before.get(key))
                raise UserError(
                    f"expected the sweep of {workdir.path} with {key} {held}, found {what}; pass "
                    "another --workdir"
                )
    elif os.path.isdir(workdir.path) and not has_only_scaffolding(workdir.path):
        raise UserError(
            f"expected {workdir.path} to be empty or a sweep's workdir, found other files in it; "
            "pass another --workdir"
        )


def _share(text: str, sweep: Sweep) -> tuple[int, int] | None:
    """Parses 'I/N' to (I, N); None where all is one process's.

    Raises:
      UserError: another form, or a sweep that has no arms to share.
    """
    part = share_of(text)
    if part is None:
        return None
    if sweep.name in ("figure2", "table4"):
        why = "its arms read what one process makes" if sweep.name == "figure2" else "it times"
        raise UserError(
            f"expected --share with a sweep whose arms train apart, found {sweep.name}: {why}; "
            "leave --share out"
        )
    return part


def _done(workdir: Workdir) -> dict[str, Any]:
    """Returns by name the arms that are through in any share, and what stopped them, or None."""
    names = glob.glob("arms*.json", root_dir=workdir.path)
    done = {name: stop for file in sorted(names) for name, stop in _read(workdir, file).items()}
    wrong = [stop for stop in done.values() if stop is not None and not isinstance(stop, str)]
    if wrong:
        raise UserError(
            f"expected what stopped an arm, or null, in the arms*.json of {workdir.path}, found "
            f"{wrong[0]!r:.60}; restore the file, or pass another --workdir"
        )
    return done


def _read(workdir: Workdir, name: str) -> dict[str, Any]:
    path = os.path.join(workdir.path, name)
    if not os.path.exists(path):
        return {}
    return read_json(path, "what a sweep has noted", "restore the file, or pass another --workdir")
