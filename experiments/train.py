"""Trains a config's stages in order, then reads the test split once and prints one table."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from typing import Any

from ml_collections import config_dict

from core import results
from core.mirrors import mirrored
from core.run_logging import check_writers, logging_run
from core.termination import watched
from core.workdir import Workdir, check_workdir, is_writer, open_workdir
from experiments.continued import Continuation, begins_from_another
from experiments.methods import open_experiment, reopened
from experiments.resolve import resolve
from experiments.teacher import open_teacher
from input_pipelines import kept_data
from input_pipelines.dataset import Dataset
from lcrsr.ranker_experiment import RankerExperiment

_LOG = logging.getLogger(__name__)


def train(
    config: Any, workdir_path: str, given: Collection[str] = (), continue_from: str = ""
) -> dict[str, Any]:
    """Runs every stage of `config` in `workdir_path`; callable from a notebook.

    Args:
      config: a config as its file returns it.
      workdir_path: the run's folder, or an address (`core.mirrors`).
      given: keys that the command line set (`experiments.resolve.resolve`).
      continue_from: folder of a finished run on earlier data, from which training goes on
        (`experiments.continued`).

    Returns:
      The contents of results.json.

    Raises:
      UserError: a mistake in the config, the data or the workdir.
      core.errors.Preempted: SIGTERM or Ctrl-C; the state is saved.
    """
    if continue_from:
        config = config_dict.ConfigDict(config.to_dict() | {"continue_from": continue_from})
    config = resolve(config, given)
    with mirrored(workdir_path) as folder:
        return _train(config, folder)


def _train(config: config_dict.ConfigDict, workdir_path: str) -> dict[str, Any]:
    """Runs every stage of a resolved config in a folder of this machine, as `train`."""
    started = time.monotonic()
    # Everything that can be wrong is found before the workdir is written.
    if is_writer():
        check_writers(config.loop.writers)
        check_workdir(workdir_path, config.to_dict())
    continues = begins_from_another(config, workdir_path)
    data = Dataset(config)
    if is_writer():
        Workdir(workdir_path).check_log(data.log.hash)
    opened = reopened(config, Workdir(workdir_path).path, training=True)
    experiment = open_experiment(opened, data, open_teacher(opened, data))
    experiment.check_data()
    beginning = Continuation(config, data) if continues else None
    with open_workdir(workdir_path, config.to_dict(), data.log.hash) as workdir:
        most = config.data.get("kept_events", 0)
        if is_writer() and (not experiment.needs_examples or most == kept_data.EVERY):
            kept_data.keep(data, workdir.path, most, experiment.fitted_arrays())
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
            if beginning is not None:
                assert isinstance(experiment, RankerExperiment)
                beginning.begin(workdir, experiment)
            experiment.run(workdir)
            data.share()
            if is_writer():
                results.write_summary(workdir, data.label)
    _LOG.info("finished in %.0f s; see %s", time.monotonic() - started, workdir.file("summary.md"))
    return workdir.read_results()
