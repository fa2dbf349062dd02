"""Trains a config's stages in order, then reads the test split once and prints one table.

    python -m launch.train --config=configs/lcr_ser_qilin.py [--workdir=runs/NAME]

The same command with the same workdir continues a run that was stopped or killed.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from core.errors import UserError
from launch import cli


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Config file: configs/MODEL_DATASET.py.")
    flags.DEFINE_string("workdir", None, "Folder of the run; default runs/ and the config's name.")
    cli.define_job_flags()


def check_flags() -> None:
    if flags.FLAGS.config is None:
        raise UserError("expected --config=FILE, found none; for instance configs/lcr_ser_qilin.py")


cli.begin(__name__, define_flags, check_flags, continues=True)

import logging
import os
import time
from collections.abc import Collection
from typing import Any

from core import distributed
from core.errors import Preempted
from core.partitioning import DATA, TABLE, make_mesh
from core.run_logging import check_writers, logging_run
from core.termination import watched
from core.workdir import Workdir, check_workdir, is_writer, open_workdir
from launch import crs_kept, results
from launch.data import Data, resolve
from launch.methods import open_experiment

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
      core.errors.Preempted: SIGTERM or Ctrl-C; the state is saved.
    """
    config = resolve(config, given)
    started = time.monotonic()
    # Everything that can be wrong is found before the workdir is written.
    if is_writer():
        check_writers(config.loop.writers)
        check_workdir(workdir_path, config.to_dict())
    data = Data(config)
    if is_writer():
        Workdir(workdir_path).check_log(data.log.hash)
    experiment = open_experiment(crs_kept.continuing(config, Workdir(workdir_path).path), data)
    experiment.check_data()
    workdir = open_workdir(workdir_path, config.to_dict(), data.log.hash)
    _LOG.info(
        "data %s: %d users, %d items, %d clicks, %d searches; %d training examples",
        data.label,
        data.log.num_users,
        data.log.num_items,
        len(data.log.rec_items),
        len(data.log.search_times),
        len(data.splits.train),
    )
    with watched(), logging_run(workdir, config.to_dict()):
        experiment.run(workdir)
        if is_writer():
            results.write_summary(workdir, data.label)
    _LOG.info("finished in %.0f s; see %s", time.monotonic() - started, workdir.file("summary.md"))
    return workdir.read_results()


def main() -> None:
    cli.run_job(_train, _train_in_job)


def _train_in_job() -> None:
    _describe(flags.FLAGS.config)
    _train()


def _describe(config: Any) -> None:
    text = distributed.describe()
    if "mesh" in config:
        mesh = make_mesh(config.mesh.data, config.mesh.table)
        text += f", mesh data {mesh.shape[DATA]} x table {mesh.shape[TABLE]}"
    _LOG.info(text)
    if not is_writer():
        # One report of the progress is enough.
        logging.getLogger().setLevel(logging.WARNING)


def default_name(config_file: str) -> str:
    """'baseline_unisar_kuaisar' of 'configs/baseline.py:unisar,kuaisar': a run's default folder."""
    path, _, choice = config_file.partition(":")
    name = os.path.splitext(os.path.basename(path))[0]
    return "_".join([name, *choice.split(",")]) if choice else name


def _train() -> None:
    holder: Any = flags.FLAGS["config"]
    given = config_flags.get_override_values(holder)
    name = default_name(config_flags.get_config_filename(holder))
    workdir = flags.FLAGS.workdir or os.path.join("runs", name)
    try:
        train(flags.FLAGS.config, workdir, given)
    except Preempted as stop:
        cli.stopped(stop)
        return
    if is_writer():
        finished = Workdir(workdir).read_results()
        results.print_table(finished, results.reported_split(finished))


if __name__ == "__main__":
    cli.run(main)
