"""Trains a ranker by supervision, by GRPO from there, and as long without it: the control."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax

from core.experiment import Plan
from core.loop import LoopConfig, steps_for
from core.workdir import Workdir
from lcrsr.ranker_experiment import RankerExperiment, no_batches
from lcrsr.reinforce import PolicyTask

# Added to the run's seed for the RL stage's random numbers, far from other seeds.
_RL_SEED = 1_000_003


class ReinforcedExperiment(RankerExperiment):
    """Stages `train`, and where `config.rl.enabled` also `rl` and `control`."""

    stages: tuple[str, ...] = ("rl", "train", "control")

    @property
    def rl_negatives(self) -> int:
        """Returns how many candidates a rollout has beside the target."""
        raise NotImplementedError

    def _reinforced(self, **of_policy: Any) -> PolicyTask:
        """Makes the stage of GRPO, from the arguments of any `PolicyTask`'s."""
        raise NotImplementedError

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
            negatives=self.rl_negatives,
            seed=self.config.seed + _RL_SEED,
            **self.windows(),
        )

    def rl_task(self, initial: Any) -> PolicyTask:
        return self._rl_task(initial, *self._rl_batches())

    def _rl_task(
        self, initial: Any, batches: Callable[[int], Iterator[Any]], steps_per_epoch: int
    ) -> PolicyTask:
        return self._reinforced(
            initial=initial,
            batches=batches,
            steps_per_epoch=steps_per_epoch,
            batch_size=self.config.rl.batch_size,
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
