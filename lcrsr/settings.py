"""Describes the settings of a ranker's training that its model does not have.

What a task itself reads is described beside it (`lcrsr.ranker_task.TrainConfig`).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from core.settings import Count, CountOrNone, Positive, Rule, RunPlace, Settings, Share, Weight

_BATCH = Rule("above 0", lambda size: size >= 0, "set such a size, or 0 for one by the log's size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleSettings(Settings):
    """Says how long a ranker trains on which batches, and how its rate falls.

    Attributes:
      batch_size: 0 leaves it to the size of the log (`lcrsr.ranker_experiment.batch_for`).
      targets_per_window: consecutive targets of a user that share one encoding of his events, at
        most (`input_pipelines.windows`).
      max_epochs: epochs at most; 0 leaves it to the size of the log
        (`lcrsr.ranker_experiment.epochs_for`).
      evals_per_epoch: evaluations on validation in each.
      learning_rate, min_learning_rate, plateau_factor, plateau_patience, stop_patience: as in
        `core.loop.LoopConfig`.
    """

    batch_size: Annotated[int, _BATCH]
    targets_per_window: Count
    max_epochs: Weight
    evals_per_epoch: Positive
    learning_rate: Weight
    min_learning_rate: Weight
    plateau_factor: Share
    plateau_patience: CountOrNone
    stop_patience: CountOrNone


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherSettings(Settings):
    """Says of which run's stage LCR-SER learns the scores as well; of none where it is empty."""

    teacher: RunPlace
    teacher_stage: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSettings(Settings):
    """Says how long GRPO lasts, and on what.

    Attributes:
      enabled: whether it follows pre-training at all.
      examples: users' histories rolled out.
      batch_size: rolled out at once.
      evals: evaluations over the stage.
    """

    enabled: bool
    examples: Count
    batch_size: Count
    evals: Count
    learning_rate: Weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class CandidateSettings(Settings):
    """Says how many candidates LCR-SER's rollouts have beside the target."""

    negatives: Count
