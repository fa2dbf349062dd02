"""Tests a method forward in time: window by window it is trained on what came before.

    python -m launch.backtest --config=configs/METHOD.py:DATASET --windows=N [--workdir=W]
    python -m launch.backtest --config=... --windows=N --continue

Half of the clicks come before the first window, the others fill N windows. Each window is trained
on all that came before it, anew or, with --continue, from the state of the window before, and
tested on its own clicks. Prints one table, which W/backtest.md and W/backtest.json keep. The same
command goes on where it was stopped.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from core import cli
from core.errors import UserError


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Config file: configs/METHOD.py:DATASET.")
    flags.DEFINE_string("workdir", None, "Folder of the backtest; default runs/backtest_ and name.")
    flags.DEFINE_integer("windows", 4, "Windows of time to test.", lower_bound=1)
    flags.DEFINE_boolean("continue", False, "Go on from the window before instead of anew.")


def check_flags() -> None:
    if flags.FLAGS.config is None:
        raise UserError("expected --config=FILE, found none; for instance configs/sasrec.py:qilin")


cli.begin(__name__, define_flags, check_flags, continues=True)


import os
import sys
from typing import Any

from core.errors import Preempted
from experiments.backtest import backtest, table
from launch.train import default_name


def main() -> None:
    values = flags.FLAGS
    holder: Any = values["config"]
    name = default_name(config_flags.get_config_filename(holder))
    workdir = values.workdir or os.path.join("runs", f"backtest_{name}")
    try:
        found = backtest(
            values.config,
            workdir,
            values.windows,
            continues=bool(values["continue"].value),
            given=config_flags.get_override_values(holder),
        )
    except Preempted as stop:
        cli.stopped(stop)
        return
    sys.stdout.write(table(found))


if __name__ == "__main__":
    cli.run(main)
