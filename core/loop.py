"""Trains every stage of every system: steps, evaluation, early stopping, checkpoints.

A stage is a pure function of its config and data: the order of examples, the random numbers and
the evaluations depend on the step alone, so a killed run that restores its last checkpoint repeats
what it lost and ends in the same state (bit for bit on CPU).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from core.checkpoints import Checkpoints
from core.compiling import announced
from core.errors import UserError
from core.metric_writers import MetricWriter
from core.plateau import Plateau
from core.progress import ProgressReport
from core.task import State, Task
from core.termination import stop_if_terminated, watched
from core.workdir import Workdir

_LOG = logging.getLogger(__name__)


class NotFinite(UserError):
    """Tells that a loss was NaN or infinite; nothing after it is saved."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Says how long a stage trains and how often it looks.

    Attributes:
      max_steps: updates at most.
      eval_every: updates between evaluations on validation, each followed by a checkpoint.
      checkpoint_every: updates between further checkpoints; a multiple of it that is no
        evaluation saves too.
      log_every: updates between log lines and writes of the training statistics.
      learning_rate, min_learning_rate: the start and the floor of reductions on plateau.
      plateau_factor, plateau_patience: what a reduction multiplies by, after how many
        evaluations without improvement.
      stop_patience: evaluations without improvement that end the stage.
    """

    max_steps: int
    eval_every: int
    checkpoint_every: int
    log_every: int
    learning_rate: float
    min_learning_rate: float
    plateau_factor: float
    plateau_patience: int
    stop_patience: int

    @classmethod
    def fixed_length(
        cls,
        max_steps: int,
        *,
        evals: int,
        checkpoint_every: int,
        log_every: int,
        learning_rate: float,
    ) -> LoopConfig:
        """Returns the loop of a stage that ends at its last step, whatever validation says.

        The task's own schedule is the only change of rate.

        Args:
          evals: evaluations on validation in all.
        """
        return cls(
            max_steps=max_steps,
            eval_every=max(1, max_steps // evals),
            checkpoint_every=checkpoint_every,
            log_every=log_every,
            learning_rate=learning_rate,
            min_learning_rate=learning_rate,
            plateau_factor=1.0,
            plateau_patience=max_steps + 1,
            stop_patience=max_steps + 1,
        )


@dataclasses.dataclass
class StageProgress:
    """Holds what the host knows of a stage; saved in every checkpoint."""

    step: int
    plateau: Plateau
    best_step: int | None = None
    finished: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "plateau": self.plateau.to_dict(),
            "best_step": self.best_step,
            "finished": self.finished,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StageProgress:
        return cls(
            step=values["step"],
            plateau=Plateau.from_dict(values["plateau"]),
            best_step=values["best_step"],
            finished=values["finished"],
        )


@dataclasses.dataclass(frozen=True)
class StageResult:
    """Holds what a finished stage leaves: the state of its best evaluation, and what led there.

    `learning_rate` is the rate in force at the best evaluation. `still_improving`: the last of
    several evaluations was the best, so that longer training may do better.
    """

    state: State
    best_step: int
    best_value: float
    last_step: int
    learning_rate: float
    still_improving: bool = False


class _Statistics:
    """Sums training statistics since the last look, on the device until then."""

    def __init__(self, stage: str):
        self._stage = stage
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []

    def add(self, step: int, values: dict[str, jax.Array]) -> None:
        self._pending.append((step, values))

    def collect(self) -> dict[str, float]:
        """Means since the last call, as `train/NAME`.

        Raises:
          NotFinite: a loss is not finite; names the first such step.
        """
        if not self._pending:
            return {}
        fetched = jax.device_get(self._pending)
        self._pending = []
        for step, values in fetched:
            if not np.isfinite(values["loss"]):
                raise NotFinite(
                    f"expected a finite loss, found {float(values['loss'])} at step {step} of "
                    f"stage {self._stage}; lower the learning rate or look at the data of that "
                    "step, and continue from the last checkpoint"
                )
        names = fetched[0][1].keys()
        return {
            f"train/{name}": float(np.mean([values[name] for _, values in fetched], dtype=float))
            for name in names
        }


def stage_directory(workdir: Workdir, stage: str) -> str:
    return workdir.file("checkpoints", stage)


def restore_best(workdir: Workdir, stage: str, like: State) -> tuple[State, StageProgress]:
    """Returns the best state of a stage, and the progress of its newest checkpoint.

    Raises:
      UserError: the stage has no evaluated checkpoint yet.
    """
    checkpoints = Checkpoints(stage_directory(workdir, stage))
    try:
        newest = checkpoints.restore(like)
        if newest is None or newest[1]["best_step"] is None:
            raise UserError(
                f"expected an evaluated checkpoint of stage {stage} in {workdir.path}, found none; "
                "let launch.train run at least one evaluation in this workdir"
            )
        progress = StageProgress.from_dict(newest[1])
        best = checkpoints.restore(like, progress.best_step)
        assert best is not None
        return best[0], progress
    finally:
        checkpoints.close()


def run_stage(task: Task, config: LoopConfig, workdir: Workdir) -> StageResult:
    """Trains `task` to its end, or continues it from its last checkpoint in `workdir`.

    Returns:
      The best state by the task's selection metric; evaluations start after the first update, so
      the starting state itself is never the result.

    Raises:
      Preempted: SIGTERM or Ctrl-C; the state is saved.
      UserError: a loss that is not finite, or a checkpoint that cannot be written or read.
    """
    stop_if_terminated(f"stage {task.name}")
    checkpoints = Checkpoints(stage_directory(workdir, task.name))
    try:
        return _run(task, config, workdir, checkpoints)
    finally:
        checkpoints.close()


def _run(task: Task, config: LoopConfig, workdir: Workdir, checkpoints: Checkpoints) -> StageResult:
    with announced(f"{task.name}: compiling and making the first state", _LOG.info):
        state, progress, restored = start_or_restore(task, config, checkpoints)
    if not progress.finished:
        report = ProgressReport(task.name, progress.step, config.max_steps, task.batch_size)
        writer = MetricWriter(workdir, task.name, progress.step)
        try:
            if restored:
                report.say(f"continues from the checkpoint of step {progress.step}")
            state = _train(task, config, checkpoints, state, progress, report, writer)
        finally:
            report.close()
            writer.close()
    return best_of(checkpoints, state, progress, config)


def start_or_restore(
    task: Task, config: LoopConfig, checkpoints: Checkpoints
) -> tuple[State, StageProgress, bool]:
    """Returns the newest checkpoint's state or the first, its progress, and if it was restored."""
    state = task.init()
    if task.partition is None:
        # What is restored, and what follows from it, lies on its device by decision and not by
        # default, and JAX compiles anew for the difference. A sweep's arms have other defaults.
        (here,) = jnp.zeros(()).devices()
        state = jax.device_put(state, here)
    restored = checkpoints.restore(state)
    checkpoints.clear_after(restored[2] if restored else 0)
    if restored is not None:
        return restored[0], StageProgress.from_dict(restored[1]), True
    return state, _first_progress(config), False


def _first_progress(config: LoopConfig) -> StageProgress:
    plateau = Plateau(
        learning_rate=config.learning_rate,
        min_lr=config.min_learning_rate,
        factor=config.plateau_factor,
        patience=config.plateau_patience,
        stop_patience=config.stop_patience,
    )
    return StageProgress(step=0, plateau=plateau)


def begin_stage(workdir: Workdir, stage: str, state: State, config: LoopConfig) -> None:
    """Saves the state that a stage is to begin with, as its checkpoint before the first update.

    Raises:
      UserError: it cannot be written.
    """
    checkpoints = Checkpoints(stage_directory(workdir, stage))
    try:
        checkpoints.clear_after(-1)
        checkpoints.save(0, state, _first_progress(config).to_dict(), None)
        checkpoints.wait()
    finally:
        checkpoints.close()


def best_of(
    checkpoints: Checkpoints, state: State, progress: StageProgress, config: LoopConfig
) -> StageResult:
    """Returns the result of a finished stage; `state` has the shapes and shardings wanted."""
    assert progress.best_step is not None and progress.plateau.best is not None
    best = checkpoints.restore(state, progress.best_step)
    assert best is not None
    return StageResult(
        state=best[0],
        best_step=progress.best_step,
        best_value=progress.plateau.best,
        last_step=progress.step,
        learning_rate=StageProgress.from_dict(best[1]).plateau.learning_rate,
        still_improving=_still_improving(progress, config),
    )


def _still_improving(progress: StageProgress, config: LoopConfig) -> bool:
    """Tells whether the best evaluation is the last, and not the only one."""
    return progress.best_step == progress.step > config.eval_every


def compile_step(task: Task, state: State) -> Any:
    """Compiles the donating (state, batch, rate) -> (state, statistics), at the task's shardings.

    Args:
      state: arrays, or their shapes.
    """
    if task.partition is None:
        return jax.jit(task.train_step, donate_argnums=0)
    partition = task.partition
    shardings = partition.shardings(state)
    # A batch that is not cut throughout says by itself where it lies.
    batch = None if partition.whole else partition.batch_sharding
    return jax.jit(
        task.train_step,
        donate_argnums=0,
        in_shardings=(shardings, batch, partition.replicated),
        out_shardings=(shardings, partition.replicated),
    )


class Report(Protocol):
    """Takes a stage's lines, such as `core.progress.ProgressReport`."""

    def step(self, step: int, values: dict[str, float]) -> None: ...

    def say(self, text: str) -> None: ...


class StageRun:
    """Does what follows an update: statistics, evaluation, early stopping, checkpoints."""

    def __init__(
        self,
        task: Task,
        config: LoopConfig,
        checkpoints: Checkpoints,
        progress: StageProgress,
        report: Report,
        writer: MetricWriter,
    ):
        self.task, self.progress = task, progress
        self._config, self._checkpoints = config, checkpoints
        self._report, self._writer = report, writer
        self._statistics = _Statistics(task.name)
        self._latest: dict[str, float] = {}
        self._evaluated = False

    def after_update(
        self, values: dict[str, jax.Array], state: Callable[[], State], terminated: bool
    ) -> None:
        """Counts one update and does what is due at its step.

        Args:
          values: the update's statistics.
          state: gives the state after it; only asked where it is needed.
          terminated: whether SIGTERM or Ctrl-C has arrived, so that a checkpoint is due.

        Raises:
          NotFinite: a loss since the last look; nothing is saved.
          UserError: a checkpoint that cannot be written.
        """
        config, progress, task = self._config, self.progress, self.task
        progress.step += 1
        step = progress.step
        self._statistics.add(step, values)
        last = step == config.max_steps
        evaluates = last or step % config.eval_every == 0
        if evaluates or step % config.log_every == 0:
            means = self._statistics.collect()
            self._latest |= {"loss": means["train/loss"]}
            self._writer.write(step, means)
            self._report.step(step, self._latest)
        if evaluates:
            metrics = self._metrics(state(), step)
            value = metrics[task.selection]
            if progress.plateau.update(value):
                progress.best_step = step
            progress.finished = last or progress.plateau.should_stop
            rate = progress.plateau.learning_rate
            self._writer.write(step, metrics | {"learning_rate": rate})
            self._latest |= {task.selection: value}
            best = "best so far" if progress.best_step == step else "not better"
            self._report.say(f"step {step} validation {task.selection} {value:.4f} ({best})")
            if progress.finished and _still_improving(progress, config):
                self._report.say(
                    f"still improving at its last evaluation, after {step} updates: train longer "
                    "to see what it reaches"
                )
        if evaluates or step % config.checkpoint_every == 0 or terminated:
            self._statistics.collect()  # a state after a loss that is not finite is never saved
            self._checkpoints.save(step, state(), progress.to_dict(), progress.best_step)

    def _metrics(self, state: State, step: int) -> dict[str, float]:
        if self._evaluated:
            return _evaluate(self.task, state, step)
        self._evaluated = True
        with announced("the first evaluation, compiled on the way,", self._report.say):
            return _evaluate(self.task, state, step)


def _train(
    task: Task,
    config: LoopConfig,
    checkpoints: Checkpoints,
    state: State,
    progress: StageProgress,
    report: ProgressReport,
    writer: MetricWriter,
) -> State:
    train_step = compile_step(task, state)
    run = StageRun(task, config, checkpoints, progress, report, writer)
    batches = task.batches(progress.step)
    on_devices = (lambda batch: batch) if task.partition is None else task.partition.put_part

    def current() -> State:
        return state

    with watched() as termination:
        terminated = False
        compiled = False
        while not progress.finished and not terminated:
            rate = np.float32(progress.plateau.learning_rate)
            batch = on_devices(next(batches))
            if compiled:
                state, values = train_step(state, batch, rate)
            else:
                what = "compiling the training step"
                with termination.repeating(what), announced(what, report.say):
                    state, values = jax.block_until_ready(train_step(state, batch, rate))
                compiled = True
            terminated = termination.arrived()
            run.after_update(values, current, terminated)
        checkpoints.wait()
        # Again: the last evaluation takes long.
        if terminated or termination.arrived():
            raise termination.preempted(
                f": saved step {progress.step} of stage {task.name}; the same command continues"
            )
    return state


def _evaluate(task: Task, state: State, step: int) -> dict[str, float]:
    # The loss of an update is finite where what it leaves behind is not.
    with finite_scores(
        f"after step {step} of stage {task.name}",
        "lower the learning rate or look at the data of that step, and continue from the last "
        "checkpoint",
    ):
        return task.evaluate(state)


@contextlib.contextmanager
def finite_scores(where: str, remedy: str) -> Iterator[None]:
    """Turns scores that are NaN in the body, a `FloatingPointError`, into one line.

    Args:
      where: they are, for the message: 'after step 3 of stage rl'.
      remedy: what the user can do.

    Raises:
      NotFinite: there are such scores.
    """
    try:
        yield
    except FloatingPointError as error:
        raise NotFinite(f"expected finite scores, found {error} {where}; {remedy}") from error


def steps_for(examples: int, batch_size: int) -> int:
    """Updates that see `examples` examples."""
    return max(1, math.ceil(examples / batch_size))
