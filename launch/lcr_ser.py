"""LCR-SER from a config: the model, its tasks, and its evaluation on prepared data."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict

from core import metrics
from core.errors import UserError
from core.loop import LoopConfig, steps_for
from launch.data import Data
from lcrsr.evaluation import Evaluator
from lcrsr.lcr_ser import LCRSERRanker, LossConfig
from lcrsr.model import LCRSER, ModelConfig
from lcrsr.pretrain import PretrainConfig, PretrainTask
from lcrsr.reinforce import ReinforceConfig, ReinforceTask

PROTOCOLS = ("neg99", "full")
# Random streams of the stages; each adds its number to the run's seed, far from other seeds.
_STAGE_SEEDS = {"pretrain": 0, "control": 0, "rl": 1_000_003}


def build(cls: type, values: dict[str, Any], *, section: str) -> Any:
    """A settings dataclass from a config section.

    Raises:
      UserError: a value the dataclass refuses.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    try:
        return cls(**{key: value for key, value in values.items() if key in known})
    except (ValueError, TypeError) as error:
        raise UserError(f"config.{section}: {error}; see configs/lcr_ser_defaults.py") from None


class LCRSERExperiment:
    """The model of a config with its data: makes tasks, evaluates states.

    Args:
      config: a resolved config (`launch.data.resolve`).
      data: the data it names.
    """

    def __init__(self, config: config_dict.ConfigDict, data: Data):
        self.config, self.data = config, data
        values = config.model.to_dict() | {
            "rec_length": config.data.rec_length,
            "search_length": config.data.search_length,
        }
        model_config = build(ModelConfig, values, section="model")
        if not 0 <= config.pretrain.active_steps <= model_config.max_steps:
            raise UserError(
                f"expected config.pretrain.active_steps from 0 to model.max_steps = "
                f"{model_config.max_steps}, found {config.pretrain.active_steps}; set one of them"
            )
        self.model = LCRSER(model_config)
        self.ranker = LCRSERRanker(
            self.model, build(LossConfig, config.pretrain.to_dict(), section="pretrain")
        )
        self.evaluator = Evaluator(self.ranker, tuple(config.eval.metrics))
        if config.eval.selection not in [
            metrics.full_name(name, "neg99") for name in config.eval.metrics
        ]:
            raise UserError(
                f"expected config.eval.selection to be one of eval.metrics against neg99, found "
                f"{config.eval.selection!r}; for instance 'ndcg@5/neg99'"
            )

    def pretrain_task(self, name: str = "pretrain", initial: Any = None) -> PretrainTask:
        """The pre-training stage, or with `initial` the control that goes on from there."""
        config = self.config.pretrain
        batches, steps_per_epoch = self.data.training(
            batch_size=config.batch_size,
            negatives=self.config.data.train_negatives,
            seed=self.config.seed + _STAGE_SEEDS[name],
        )
        first_step = 0 if initial is None else int(initial["step"])
        return PretrainTask(
            name=name,
            ranker=self.ranker,
            config=build(PretrainConfig, config.to_dict(), section="pretrain"),
            table_sizes=self.data.table_sizes,
            example_batch=self.example_batch(),
            # The control's first update is the one after the state it starts from.
            batches=lambda start: batches(first_step + start),
            steps_per_epoch=steps_per_epoch,
            batch_size=config.batch_size,
            evaluate=self.validate,
            selection=self.config.eval.selection,
            seed=self.config.seed,
            initial=initial,
        )

    def rl_task(self, initial: Any) -> ReinforceTask:
        config = self.config.rl
        batches, steps_per_epoch = self.data.training(
            batch_size=config.batch_size,
            negatives=config.negatives,
            seed=self.config.seed + _STAGE_SEEDS["rl"],
        )
        return ReinforceTask(
            model=self.model,
            config=build(
                ReinforceConfig,
                config.to_dict() | {"active_steps": self.config.pretrain.active_steps},
                section="rl",
            ),
            initial=initial,
            batches=batches,
            steps_per_epoch=steps_per_epoch,
            batch_size=config.batch_size,
            evaluate=self.validate,
            selection=self.config.eval.selection,
            seed=self.config.seed + _STAGE_SEEDS["rl"],
        )

    def loop_config(
        self, stage: str, steps_per_epoch: int, control_rate: float | None = None
    ) -> LoopConfig:
        """How long `stage` runs; the control goes on at the rate of the state it starts from."""
        pretrain, rl = self.config.pretrain, self.config.rl
        if stage == "pretrain":
            max_steps = max(1, round(pretrain.max_epochs * steps_per_epoch))
            eval_every = max(1, round(steps_per_epoch / pretrain.evals_per_epoch))
            rate = pretrain.learning_rate
        else:
            size = rl.batch_size if stage == "rl" else pretrain.batch_size
            max_steps = steps_for(rl.examples, size)
            eval_every = max(1, max_steps // rl.evals)
            rate = rl.learning_rate if control_rate is None else control_rate
        return LoopConfig(
            max_steps=max_steps,
            eval_every=eval_every,
            checkpoint_every=self.config.loop.checkpoint_every,
            log_every=self.config.loop.log_every,
            learning_rate=rate,
            min_learning_rate=min(rate, pretrain.min_learning_rate),
            plateau_factor=pretrain.plateau_factor,
            plateau_patience=pretrain.plateau_patience,
            stop_patience=pretrain.stop_patience,
        )

    def example_batch(self) -> dict[str, np.ndarray]:
        """A batch of the right ranks, for shapes only."""
        return next(iter(self.data.sampled("validation", "neg99")))

    def evaluate(self, params: Any, tables: Any, split: str, protocol: str) -> metrics.Sums:
        if protocol == "full":
            return self.evaluator.full(params, tables, self.data.full(split))
        return self.evaluator.sampled(params, tables, self.data.sampled(split, protocol))

    def validate(self, params: Any, tables: Any) -> dict[str, float]:
        means = self.evaluate(params, tables, "validation", "neg99").means()
        return {metrics.full_name(name, "neg99"): value for name, value in means.items()}

    def abstract_state(self, stage: str) -> Any:
        """Shapes and dtypes of a stage's state, to restore a checkpoint into."""
        pretrained = jax.eval_shape(self.pretrain_task().random_state)
        if stage != "rl":
            return pretrained
        return jax.eval_shape(lambda state: self.rl_task(state).init(), pretrained)
