"""Trains a config's stages in order, then reads the test split once and prints one table.

    python -m launch.train --config=configs/lcr_ser_qilin.py [--workdir=runs/NAME]
    python -m launch.train --config=... --from=W --config.data_dir=D2 [--workdir=runs/NAME]

The same command with the same workdir continues a run that was stopped or killed. With --from a new
run begins with what the finished run W has learnt, on newer data (experiments.continued).
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from core import cli
from core.errors import UserError


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Config file: configs/METHOD.py:DATASET.")
    flags.DEFINE_string("workdir", None, "Folder or address of the run; default runs/NAME.")
    flags.DEFINE_string("from", "", "Folder of a finished run on earlier data, to go on from.")
    cli.define_job_flags()


def check_flags() -> None:
    if flags.FLAGS.config is None:
        raise UserError("expected --config=FILE, found none; for instance configs/lcr_ser_qilin.py")


cli.begin(__name__, define_flags, check_flags, continues=True)


import logging
import os
from typing import Any

from core import distributed, results
from core.errors import Preempted
from core.partitioning import DATA, MODEL, make_mesh
from core.workdir import is_writer
from experiments.train import train

_LOG = logging.getLogger(__name__)


def main() -> None:
    cli.run_job(_train, _train_in_job)


def _train_in_job() -> None:
    _describe(flags.FLAGS.config)
    _train()


def _describe(config: Any) -> None:
    text = distributed.describe()
    if "mesh" in config:
        mesh = make_mesh(config.mesh.data, config.mesh.model)
        text += f", mesh data {mesh.shape[DATA]} x model {mesh.shape[MODEL]}"
    _LOG.info(text)
    if not is_writer():
        # One report of the progress is enough.
        logging.getLogger().setLevel(logging.WARNING)


def default_name(config_file: str) -> str:
    """Names a run's default folder: 'sasrec_kuaisar_ce' of 'configs/sasrec.py:kuaisar,ce'."""
    path, _, choice = config_file.partition(":")
    name = os.path.splitext(os.path.basename(path))[0]
    return "_".join([name, *choice.split(",")]) if choice else name


def _train() -> None:
    holder: Any = flags.FLAGS["config"]
    given = config_flags.get_override_values(holder)
    name = default_name(config_flags.get_config_filename(holder))
    workdir = flags.FLAGS.workdir or os.path.join("runs", name)
    try:
        finished = train(flags.FLAGS.config, workdir, given, str(flags.FLAGS["from"].value))
    except Preempted as stop:
        cli.stopped(stop)
        return
    if is_writer():
        results.print_table(finished, results.reported_split(finished))


if __name__ == "__main__":
    cli.run(main)
