"""Opens a finished or running workdir again: for evaluation, prediction and notebooks."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from ml_collections import config_dict

from core.checkpoints import newest_progress
from core.errors import UserError, reason_of
from core.loop import restore_best
from core.mirrors import copied_run
from core.workdir import Workdir
from experiments.methods import check_settings, experiment_class, open_experiment, reopened
from input_pipelines import kept_data
from input_pipelines.dataset import Dataset

# What every run's config has.
_KINDS = {"method": str, "dataset": str, "seed": int, "data": dict, "eval": dict}


def mesh_here(data: int, model: int, devices: int) -> dict[str, int]:
    """Returns the mesh to open a run on that was trained on data x model devices; -1 was the rest.

    The rest is a power of two here, since batches and tables are cut into parts of one size; and
    one device serves where there are fewer than the mesh asks for.
    """
    free = devices // abs(data * model)
    rest = 2 ** (free.bit_length() - 1) if free else 0
    data, model = (rest if extent == -1 else extent for extent in (data, model))
    return (
        {"data": data, "model": model} if 0 < data * model <= devices else {"data": 1, "model": 1}
    )


def read_run_config(workdir: Workdir) -> config_dict.ConfigDict:
    """Returns the config of a run, to be opened within `settings_named`.

    Raises:
      UserError: config.json cannot be read, lacks a section, or has values of other kinds.
    """
    for key, kind in _KINDS.items():
        workdir.read_setting(key, kind)
    config = config_dict.ConfigDict(workdir.read_config())
    with settings_named(workdir):
        check_settings(config)
    return config


@contextlib.contextmanager
def settings_named(workdir: Workdir) -> Iterator[None]:
    """Turns a setting that a run's config.json lacks, or has as another kind, into one line.

    Raises:
      UserError: the block, which opens a run by its config, could not use it.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {reason_of(error, 120)}"
        raise UserError(
            f"expected the config of a run in {workdir.path}/config.json, found one that cannot be "
            f"used ({reason}); restore the file, or train again in another --workdir"
        ) from error


def _folder(workdir: Workdir, stage: str) -> str:
    return os.path.join(workdir.path, "checkpoints", stage)


def stage_to_open(workdir: Workdir, stages: Sequence[str]) -> str:
    """Returns the first of `stages` with an evaluated checkpoint, and the first where none has."""
    for stage in stages:
        progress = newest_progress(_folder(workdir, stage))
        if progress is not None and progress["best_step"] is not None:
            return stage
    return stages[0]


def open_run(workdir: Workdir, devices: int, *, kept: bool = False) -> Any:
    """Opens the experiment of a run with its data, as far as config and data tell it.

    Args:
      devices: how many there are to open it on.
      kept: whether with what the run's folder keeps of its data, which then need not be there.

    Raises:
      UserError: no run there, or one of data (for GenSAR also item texts, tokens, identifiers) that
        has changed since.
    """
    config = read_run_config(workdir)
    with settings_named(workdir):
        config.mesh.update(mesh_here(config.mesh.data, config.mesh.model, devices))
        config = reopened(config, workdir.path, training=False)
        open_data = kept_data.open_kept if kept else Dataset
        data = open_data(config, workdir.path)
        workdir.check_log(data.log.hash)
        if isinstance(data, kept_data.KeptData) and experiment_class(config).needs_examples:
            raise UserError(
                f"expected every event of the data in {workdir.path} to open a run of "
                f"{config.method}, found the latest alone; bring the data back, or train with "
                "--config.data.kept_events=-1"
            )
        experiment = open_experiment(config, data)
    experiment.check_recorded(workdir)
    return experiment


class Restored:
    """Opens the best state of a run's stage with everything needed to score.

    Args:
      workdir: the folder or address of a run of launch.train.
      stage: 'train', 'rl' or 'control' ('fit' for a fitted baseline); None takes 'rl' where it
        has an evaluated checkpoint, else 'train'.
      devices: to open it on; None takes all.
      kept: as of `open_run`.

    Attributes:
      experiment, data, stage, step, params, tables (the last two None for a fitted baseline).
        `tables` are as trained: what `experiment.evaluate` and its `evaluator` take.

    Raises:
      UserError: no run there, one of data (for GenSAR also item texts, tokens, identifiers) that
        has changed since, or the stage has no evaluated checkpoint.
    """

    def __init__(
        self,
        workdir: str,
        stage: str | None = None,
        devices: int | None = None,
        *,
        kept: bool = False,
    ):
        self.workdir = Workdir(copied_run(workdir))
        self.experiment = open_run(self.workdir, devices or jax.device_count(), kept=kept)
        self.data: Dataset = self.experiment.data
        stages = self.experiment.stages
        self.stage = stage or stage_to_open(self.workdir, stages)
        if self.stage not in stages:
            raise UserError(f"expected a stage of {', '.join(stages)}, found {self.stage!r}")
        self.step, self.params = 0, None
        self.tables: Any = None
        if self.stage != "fit":
            self._restore()

    @functools.cached_property
    def tables_with_words(self) -> Any:
        """Returns the tables that the model's own functions score with, without an `Evaluator`."""
        return self.experiment.scoring_tables(self.tables)

    def _restore(self) -> None:
        like = self.experiment.abstract_state(self.stage)
        self._check_trained(self.stage)
        state, progress = restore_best(self.workdir, self.stage, like)
        assert progress.best_step is not None
        self.step = progress.best_step
        self.params, self.tables = state["params"], state["tables"]

    def _check_trained(self, stage: str) -> None:
        if not os.path.isdir(_folder(self.workdir, stage)):
            raise UserError(
                f"expected checkpoints of stage {stage} in {self.workdir.path}, found none; run "
                "launch.train with this --workdir first"
            )
