"""Runs LCR-SER from a config: pre-training, GRPO, and the control that trains as long without
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ml_collections import config_dict

from core.errors import UserError
from core.settings import Section, build
from input_pipelines.dataset import Dataset
from lcrsr.lcr_ser import LCRSERRanker, LossConfig
from lcrsr.model import LCRSER, ModelConfig
from lcrsr.ranker_task import TrainConfig
from lcrsr.reinforce import ReinforceConfig, ReinforceTask
from lcrsr.reinforced_experiment import ReinforcedExperiment
from lcrsr.settings import CandidateSettings, ScheduleSettings, StageSettings, TeacherSettings


def _lengths(config: config_dict.ConfigDict) -> dict[str, int]:
    return {name: config.data[name] for name in ("rec_length", "search_length")}


def _steps(config: config_dict.ConfigDict) -> dict[str, int]:
    return {"active_steps": config.train.active_steps}


class Teacher(Protocol):
    """Adds the scores of a finished run to batches; `experiments.teacher` makes one."""

    def with_scores(
        self, batches: Callable[[int], Iterator[Any]]
    ) -> Callable[[int], Iterator[Any]]: ...


class LCRSERExperiment(ReinforcedExperiment):
    """Stages `train`, and where `config.rl.enabled` also `rl` and `control`.

    Args:
      config: a resolved config (`experiments.resolve.resolve`).
      data: the data it names.
      teacher: scores the candidates that pre-training is to learn from (`config.train.teacher`);
        None where it learns from clicks alone, or where nothing is trained.
    """

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
                (StageSettings, CandidateSettings, ReinforceConfig),
                _steps,
                lambda config: config.rl.enabled is True,
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

    def training_batches(self, seed: int) -> tuple[Callable[[int], Iterator[Any]], int]:
        batches, steps_per_epoch = super().training_batches(seed)
        if self._teacher is not None:
            batches = self._teacher.with_scores(batches)
        return batches, steps_per_epoch

    @property
    def rl_negatives(self) -> int:
        return self.config.rl.negatives

    def _reinforced(self, **of_policy: Any) -> ReinforceTask:
        config = self.config.rl.to_dict()
        return ReinforceTask(
            model=self.model,
            config=build(ReinforceConfig, config, section="rl", more=_steps(self.config)),
            **of_policy,
        )
