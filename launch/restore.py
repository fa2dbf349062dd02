"""A finished or running workdir, opened again: for evaluation, prediction and notebooks."""

from __future__ import annotations

import os
from typing import Any

from ml_collections import config_dict

from core.errors import UserError
from core.loop import restore_best
from core.workdir import Workdir
from launch.data import Data
from launch.lcr_ser import LCRSERExperiment

_STAGES = ("rl", "control", "pretrain")


class Restored:
    """The best state of a run's stage with everything needed to score.

    Args:
      workdir: the folder of a run of launch.train.
      stage: 'pretrain', 'rl' or 'control'; None takes 'rl' where it was trained, else 'pretrain'.

    Attributes:
      experiment, data, stage, step, params, tables.

    Raises:
      UserError: no run there, or the stage has no evaluated checkpoint.
    """

    def __init__(self, workdir: str, stage: str | None = None):
        self.workdir = Workdir(workdir)
        config = config_dict.ConfigDict(self.workdir.read_config())
        self.stage = stage or self._newest_stage()
        if self.stage not in _STAGES:
            raise UserError(f"expected a stage of {', '.join(_STAGES)}, found {self.stage!r}")
        self.data = Data(config)
        self.experiment = LCRSERExperiment(config, self.data)
        like = self.experiment.abstract_state(self.stage)
        self._check_trained(self.stage)
        state, progress = restore_best(self.workdir, self.stage, like)
        assert progress.best_step is not None
        self.step = progress.best_step
        self.params: Any = state["params"]
        self.tables: Any = state["tables"]

    def _newest_stage(self) -> str:
        for stage in ("rl", "pretrain"):
            if os.path.isdir(os.path.join(self.workdir.path, "checkpoints", stage)):
                return stage
        return "pretrain"

    def _check_trained(self, stage: str) -> None:
        if not os.path.isdir(os.path.join(self.workdir.path, "checkpoints", stage)):
            raise UserError(
                f"expected checkpoints of stage {stage} in {self.workdir.path}, found none; run "
                "launch.train with this --workdir first"
            )
