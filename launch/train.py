"""Trains a config's stages in order, then reads the test split once and prints one table.

    python -m launch.train --config=configs/lcr_ser_qilin.py [--workdir=runs/NAME]

The same command with the same workdir continues a run that was stopped or killed.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection
from typing import Any

from absl import flags
from ml_collections import config_flags

from core.errors import UserError
from core.loop import Preempted, StageResult, run_stage
from core.workdir import Workdir, check_workdir, open_workdir
from launch import cli, results
from launch.data import Data, resolve
from launch.lcr_ser import PROTOCOLS, LCRSERExperiment

_LOG = logging.getLogger(__name__)


def train(config: Any, workdir_path: str, given: Collection[str] = ()) -> dict[str, Any]:
    """Runs every stage of `config` in `workdir_path`; callable from a notebook.

    Args:
      config: a config as its file returns it.
      workdir_path: the run's folder.
      given: keys that the command line set (`launch.data.resolve`).

    Returns:
      The contents of results.json.

    Raises:
      UserError: a mistake in the config, the data or the workdir.
      core.loop.Preempted: SIGTERM; the state is saved.
    """
    config = resolve(config, given)
    started = time.monotonic()
    # Everything that can be wrong is found before the workdir is written.
    check_workdir(workdir_path, config.to_dict())
    data = Data(config)
    experiment = LCRSERExperiment(config, data)
    workdir = open_workdir(workdir_path, config.to_dict())
    _LOG.info(
        "data %s: %d users, %d items, %d clicks, %d searches; %d training examples",
        data.label,
        data.log.num_users,
        data.log.num_items,
        len(data.log.rec_items),
        len(data.log.search_times),
        len(data.splits.train),
    )
    task = experiment.pretrain_task()
    pretrained = run_stage(task, experiment.loop_config(task.name, task.steps_per_epoch), workdir)
    _test(experiment, workdir, "pretrain", pretrained)
    if config.rl.enabled:
        rl_task = experiment.rl_task(pretrained.state)
        reinforced = run_stage(
            rl_task, experiment.loop_config("rl", rl_task.steps_per_epoch), workdir
        )
        _test(experiment, workdir, "rl", reinforced)
        control_task = experiment.pretrain_task("control", pretrained.state)
        control = run_stage(
            control_task,
            experiment.loop_config(
                "control", control_task.steps_per_epoch, pretrained.learning_rate
            ),
            workdir,
        )
        _test(experiment, workdir, "control", control)
    results.write_summary(workdir, data.label)
    _LOG.info("finished in %.0f s; see %s", time.monotonic() - started, workdir.file("summary.md"))
    return workdir.read_results()


def _test(
    experiment: LCRSERExperiment, workdir: Workdir, stage: str, finished: StageResult
) -> None:
    """Reads the test split for a finished stage, once: a saved row is not computed again."""
    done = {
        (row["stage"], row["protocol"])
        for row in workdir.read_results()["rows"]
        if row["split"] == "test" and row["step"] == finished.best_step
    }
    for protocol in PROTOCOLS:
        if (stage, protocol) in done:
            continue
        sums = experiment.evaluate(
            finished.state["params"], finished.state["tables"], "test", protocol
        )
        results.save(
            workdir,
            sums,
            stage=stage,
            split="test",
            protocol=protocol,
            step=finished.best_step,
            config=experiment.config,
            data=experiment.data,
        )


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Config file: configs/MODEL_DATASET.py.")
    flags.DEFINE_string("workdir", None, "Folder of the run; default runs/ and the config's name.")


def main() -> None:
    if flags.FLAGS.config is None:
        raise UserError("expected --config=FILE, found none; for instance configs/lcr_ser_qilin.py")
    holder: Any = flags.FLAGS["config"]
    given = config_flags.get_override_values(holder)
    name = os.path.splitext(os.path.basename(config_flags.get_config_filename(holder)))[0]
    workdir = flags.FLAGS.workdir or os.path.join("runs", name)
    try:
        train(flags.FLAGS.config, workdir, given)
    except Preempted as stop:
        print(stop)
        return
    results.print_table(Workdir(workdir).read_results())


if __name__ == "__main__":
    cli.run(main, define_flags)
