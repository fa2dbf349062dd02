"""Runs LCR-SER from a config: pre-training, GRPO, and the control that trains as long without
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
from ml_collections import config_dict

from core.errors import UserError
from core.experiment import Plan
from core.loop import LoopConfig, steps_for
from core.settings import Section, build
from core.workdir import Workdir
from input_pipelines.dataset import Dataset
from lcrsr.lcr_ser import LCRSERRanker, LossConfig
from lcrsr.model import LCRSER, ModelConfig
from lcrsr.ranker_experiment import RankerExperiment, no_batches
from lcrsr.ranker_task import TrainConfig
from lcrsr.reinforce import ReinforceConfig, ReinforceTask
from lcrsr.settings import ScheduleSettings, StageSettings, TeacherSettings

# Added to the run's seed for the RL stage's random numbers, far from other seeds.
_RL_SEED = 1_000_003


def _lengths(config: config_dict.ConfigDict) -> dict[str, int]:
    return {name: config.data[name] for name in ("rec_length", "search_length")}


def _steps(config: config_dict.ConfigDict) -> dict[str, int]:
    return {"active_steps": config.train.active_steps}


class Teacher(Protocol):
    """Adds the scores of a finished run to batches; `experiments.teacher` makes one."""

    def with_scores(
        self, batches: Callable[[int], Iterator[Any]]
    ) -> Callable[[int], Iterator[Any]]: ...


class LCRSERExperiment(RankerExperiment):
    """Stages `train`, and where `config.rl.enabled` also `rl` and `control`.

    Args:
      config: a resolved config (`experiments.resolve.resolve`).
      data: the data it names.
      teacher: scores the candidates that pre-training is to learn from (`config.train.teacher`);
        None where it learns from clicks alone, or where nothing is trained.
    """

    stages: tuple[str, ...] = ("rl", "train", "control")

    def __init__(
        self, config: config_dict.ConfigDict, data: Dataset, teacher: Teacher | None = None
    ):
        super().__init__(config, data)
        self.model = self.ranker.model
        self._teacher = teacher

    @classmethod
    def ranker_of(cls, config: config_dict.ConfigDict) -> LCRSERRanker:
        model = build(ModelConfig, config.model.to_dict(), section="model", more=_lengths(config))
        loss = build(LossConfig, config.train.to_dict(), section="train")
        return LCRSERRanker(LCRSER(model), loss)

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        return {
            **super().sections(config),
            "model": Section((ModelConfig,), _lengths),
            "train": Section((ScheduleSettings, TrainConfig, LossConfig, TeacherSettings)),
            "rl": Section(
                (StageSettings, ReinforceConfig), _steps, lambda config: config.rl.enabled is True
            ),
        }

    @classmethod
    def check_settings(cls, config: config_dict.ConfigDict) -> None:
        super().check_settings(config)
        if config.train.active_steps > config.model.max_steps:
            raise UserError(
                f"expected config.train.active_steps from 0 to config.model.max_steps = "
                f"{config.model.max_steps}, found {config.train.active_steps}; set one of them"
            )
        if config.data.item_words and config.rl.enabled:
            raise UserError(
                "expected config.rl.enabled=False with config.data.item_words, found True: GRPO "
                "reads items without their words; set it"
            )

    @classmethod
    def reopened(
        cls, config: config_dict.ConfigDict, folder: str, *, training: bool
    ) -> config_dict.ConfigDict:
        if not training:
            config = config_dict.ConfigDict(config.to_dict())
            config.train.teacher = ""
        return config

    def check_data(self) -> None:
        super().check_data()
        if self.config.rl.enabled:
            next(self._rl_batches()[0](0))

    def plan(self, workdir: Workdir) -> Plan:
        task = self.train_task()
        pretrained = yield task, self.loop_config(task)
        self.test_stage(workdir, "train", pretrained)
        if not self.config.rl.enabled:
            return
        rl = self.config.rl
        reinforced = yield (
            self.rl_task(pretrained.state),
            self._further(rl.batch_size, rl.learning_rate),
        )
        self.test_stage(workdir, "rl", reinforced)
        # The control goes on at the rate of the state it starts from.
        control = yield (
            task.continued("control", pretrained.state),
            self._further(self.config.train.batch_size, pretrained.learning_rate),
        )
        self.test_stage(workdir, "control", control)

    def training_batches(self, seed: int) -> tuple[Callable[[int], Iterator[Any]], int]:
        batches, steps_per_epoch = super().training_batches(seed)
        if self._teacher is not None:
            batches = self._teacher.with_scores(batches)
        return batches, steps_per_epoch

    def _further(self, batch_size: int, learning_rate: float) -> LoopConfig:
        """Makes `rl.examples` further examples in batches of `batch_size`."""
        max_steps = steps_for(self.config.rl.examples, batch_size)
        return self.loop(
            max_steps=max_steps,
            eval_every=max(1, max_steps // self.config.rl.evals),
            learning_rate=learning_rate,
        )

    def _rl_batches(self) -> tuple[Callable[[int], Iterator[Any]], int]:
        return self.data.training(
            batch_size=self.config.rl.batch_size,
            negatives=self.config.rl.negatives,
            seed=self.config.seed + _RL_SEED,
            **self.windows(),
        )

    def rl_task(self, initial: Any) -> ReinforceTask:
        return self._rl_task(initial, *self._rl_batches())

    def _rl_task(
        self, initial: Any, batches: Callable[[int], Iterator[Any]], steps_per_epoch: int
    ) -> ReinforceTask:
        config = self.config.rl
        return ReinforceTask(
            model=self.model,
            config=build(ReinforceConfig, config.to_dict(), section="rl", more=_steps(self.config)),
            initial=initial,
            batches=batches,
            steps_per_epoch=steps_per_epoch,
            batch_size=config.batch_size,
            evaluate=self.validate,
            selection=self.selection,
            seed=self.config.seed + _RL_SEED,
            partition=self.partition,
        )

    def _shapes(self, stage: str) -> Any:
        pretrained = super()._shapes(stage)
        if stage != "rl":
            return pretrained

        def state_of(state):
            return self._rl_task(state, no_batches, 1).state_from(state)

        return jax.eval_shape(state_of, pretrained)
