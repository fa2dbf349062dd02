"""Trains runs of LCR-SER side by side whose configs differ in numbers alone (`ablation.arms`)."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
from ml_collections import config_dict

from core import results
from core.errors import UserError
from core.files import writing
from core.loop import NotFinite, run_stage, stage_directory
from core.metric_writers import METRICS_FILE, read_lines, write_lines
from core.run_logging import check_writers, logging_run
from core.workdir import Workdir, check_workdir, open_workdir
from experiments.teacher import open_teacher
from input_pipelines.dataset import Dataset
from lcrsr.experiment import LCRSERExperiment
from studies.ablation.arms import Arm, arms_that_fit, available_bytes, device_of, run_arms
from studies.ablation.sweeps import NUMBERS

_LOG = logging.getLogger(__name__)
# Trains one stage of every arm and returns by name the arms whose loss was not finite.
TrainArms = Callable[[Sequence[Arm]], dict[str, NotFinite]]


@dataclasses.dataclass(frozen=True)
class Run:
    """Describes one arm: its name in messages, its resolved config, and its folder, a normal
    workdir.
    """

    name: str
    config: config_dict.ConfigDict
    path: str


def _structure(config: config_dict.ConfigDict) -> str:
    """Returns what programs depend on: the config without its numbers."""
    copy = config_dict.ConfigDict(config.to_dict())
    for key in NUMBERS:
        section, _, name = key.rpartition(".")
        place = copy[section] if section else copy
        if name in place:
            del place[name]
    return json.dumps(copy.to_dict(), sort_keys=True)


def _start(config: config_dict.ConfigDict) -> str:
    """Returns what pre-training and the control depend on: of RL's settings only how long that
    is.
    """
    values = config.to_dict()
    values["rl"] = {name: values["rl"][name] for name in ("examples", "evals")}
    return json.dumps(values, sort_keys=True)


def check_runs(runs: Sequence[Run], data: Dataset) -> list[LCRSERExperiment]:
    """Finds everything that can be wrong with the runs before one of them is written.

    Raises:
      UserError: a setting or data that does not fit, or a workdir that another run has.
    """
    experiments = []
    for run in runs:
        mesh = run.config.mesh
        if (mesh.data, mesh.model) != (1, 1):
            raise UserError(
                f"expected config.mesh of 1 x 1 in a sweep, found {mesh.data} x {mesh.model}: its "
                "arms lie on the devices; leave it out"
            )
        check_writers(run.config.loop.writers)
        check_workdir(run.path, run.config.to_dict())
        experiments.append(LCRSERExperiment(run.config, data, open_teacher(run.config, data)))
        experiments[-1].check_data()
    return experiments


def groups_that_fit(
    runs: Sequence[Run], experiments: Sequence[LCRSERExperiment], available: int, devices: int
) -> list[list[tuple[Run, LCRSERExperiment]]]:
    """Groups the runs that train side by side: those of one structure, as many as memory holds.

    The runs of one structure share the programs that evaluate them.

    Args:
      available: bytes on each device.
      devices: how many there are.
    """
    structures: dict[str, list[tuple[Run, LCRSERExperiment]]] = {}
    for run, experiment in zip(runs, experiments, strict=True):
        structures.setdefault(_structure(run.config), []).append((run, experiment))
    groups = []
    for same in structures.values():
        for _, experiment in same[1:]:
            experiment.evaluator.share_programs(same[0][1].evaluator)
        fit = min(len(same), arms_that_fit(same[0][1].train_task(), available, devices))
        if fit < len(same):
            memory = f"{devices} x {available / 1e9:.1f} GB"
            _LOG.info("%d of %d arms fit in %s: in groups", fit, len(same), memory)
        groups += [same[start : start + fit] for start in range(0, len(same), fit)]
    return groups


def run_all(
    runs: Sequence[Run],
    data: Dataset,
    experiments: Sequence[LCRSERExperiment],
    train: TrainArms = run_arms,
) -> dict[str, str]:
    """Trains and tests every run; runs of one structure go side by side as far as memory allows.

    Args:
      experiments: as `check_runs` returns them.
      train: trains one stage of arms side by side.

    Returns:
      By name, what stopped a run whose loss or scores were not finite.

    Raises:
      core.errors.Preempted, UserError: as `core.loop.run_stage`.
    """
    firsts: dict[str, Run] = {}
    pretrained_by = {run.name: firsts.setdefault(_start(run.config), run) for run in runs}
    stopped: dict[str, str] = {}
    for group in groups_that_fit(runs, experiments, *available_bytes()):
        _run_together(group, data, pretrained_by, stopped, train)
    return stopped


def _run_together(
    group: Sequence[tuple[Run, LCRSERExperiment]],
    data: Dataset,
    pretrained_by: dict[str, Run],
    stopped: dict[str, str],
    train: TrainArms,
) -> None:
    """Takes all runs through their stages in step with each other.

    Args:
      pretrained_by: by name, the first run with the same pre-training and control, maybe the run
        itself: these are trained there and copied.
      stopped: gets what stopped a run, by name.
    """
    workdirs = {}
    with contextlib.ExitStack() as opened:
        for run, _ in group:
            settings = run.config.to_dict()
            workdir = opened.enter_context(open_workdir(run.path, settings, data.log.hash))
            opened.enter_context(logging_run(workdir, settings))
            workdirs[run.name] = workdir
        _train_stages(group, workdirs, data, pretrained_by, stopped, train)


def _train_stages(
    group: Sequence[tuple[Run, LCRSERExperiment]],
    workdirs: dict[str, Workdir],
    data: Dataset,
    pretrained_by: dict[str, Run],
    stopped: dict[str, str],
    train: TrainArms,
) -> None:
    """Trains and tests the runs of `_run_together` in the workdirs opened for them."""
    plans = {run.name: experiment.plan(workdirs[run.name]) for run, experiment in group}
    # What a plan keeps of a finished stage lies where its arm does, or one device would hold all.
    devices = {
        run.name: device_of(place, len(group), jax.devices())
        for place, (run, _) in enumerate(group)
    }
    due: dict[str, Any] = {name: next(plan) for name, plan in plans.items()}
    while due:
        arms = [Arm(name, task, loop, workdirs[name]) for name, (task, loop) in due.items()]
        stage = arms[0].task.name
        copied = {} if stage == "rl" else _to_copy(due, pretrained_by, stage, stopped)
        trained = [arm for arm in arms if arm.name not in copied]
        failures = train(trained) if trained else {}
        for name, first in copied.items():
            if first.name in failures:
                failures[name] = failures[first.name]
            else:
                _copy_stage(Workdir(first.path), workdirs[name], stage)
        stopped |= {name: str(error) for name, error in failures.items()}
        going, due = due, {}
        for name, (task, config) in going.items():
            if name in failures:
                continue
            try:
                with jax.default_device(devices[name]):
                    due[name] = plans[name].send(run_stage(task, config, workdirs[name]))
            except NotFinite as error:
                stopped[name] = str(error)
                _LOG.warning("%s: %s", name, error)
            except StopIteration:
                results.write_summary(workdirs[name], data.label)


def _to_copy(
    due: Collection[str], pretrained_by: dict[str, Run], stage: str, stopped: Collection[str]
) -> dict[str, Run]:
    """Returns the due runs whose first run trains this stage beside them or has trained it."""
    to_copy = {}
    for name in due:
        first = pretrained_by[name]
        trained = os.path.isdir(stage_directory(Workdir(first.path), stage))
        if first.name != name and (first.name in due or (trained and first.name not in stopped)):
            to_copy[name] = first
    return to_copy


def _copy_stage(source: Workdir, target: Workdir, stage: str) -> None:
    """Gives `target` the stage that `source` has trained, unless it has it."""
    here, there = stage_directory(source, stage), stage_directory(target, stage)
    if os.path.exists(there):
        return
    lines = [line for line in read_lines(source.file(METRICS_FILE)) if line["stage"] == stage]
    others = [line for line in read_lines(target.file(METRICS_FILE)) if line["stage"] != stage]
    write_lines(target, [*lines, *others])
    events = target.file("events", stage)
    with writing(target.path):
        if os.path.exists(source.file("events", stage)):
            shutil.copytree(source.file("events", stage), events, dirs_exist_ok=True)
        partial = f"{there}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(here, partial)
        os.rename(partial, there)  # last: what is there is whole
