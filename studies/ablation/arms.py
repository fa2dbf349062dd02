"""Arms of a sweep side by side: runs that differ in numbers alone share one compiled step.

Every arm keeps what a run has on its own: parameters, tables and moments from its own seed, early
stopping, metrics, checkpoints and workdir. What the arms share is the program, into which their
numbers go as arguments, and the batches of arms that read the same ones. On an accelerator the
states are stacked on a leading axis and the step is mapped over it; on several devices that axis is
the mesh axis `arm`. On a single CPU device a program takes one arm a call: mapped arms were slower
there, since their temporaries no longer fit its caches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np

from core.checkpoints import Checkpoints
from core.compiling import announced
from core.errors import UserError
from core.loop import (
    LoopConfig,
    NotFinite,
    StageRun,
    stage_directory,
    start_or_restore,
)
from core.metric_writers import MetricWriter, ProgressReport
from core.task import Batch, State, Task, TracedTask
from core.termination import Termination, stop_if_terminated, watched
from core.workdir import Workdir
from studies.ablation.arm_programs import Programs, row

_LOG = logging.getLogger(__name__)
# The state, the one it started from and the best one that a later stage starts from.
_COPIES = 3
_USED_SHARE = 0.8


@dataclasses.dataclass(frozen=True)
class Arm:
    """Describes one run of a sweep: its name in messages, one of its stages, and its folder."""

    name: str
    task: TracedTask
    config: LoopConfig
    workdir: Workdir


def arms_that_fit(task: Task, available: int, devices: int = 1) -> int:
    """Returns how many arms of a task `available` bytes on each device hold, at least 1 on each.

    Temporaries are left a fifth.
    """
    shapes = jax.tree.leaves(jax.eval_shape(task.init))
    one = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes if leaf.ndim)
    return devices * max(1, int(_USED_SHARE * available / (_COPIES * one)))


def device_of(place: int, arms: int, devices: Sequence[Any]) -> Any:
    """Tells where the arm at `place` among `arms` is made and restored, spread over the devices."""
    return devices[place * len(devices) // max(arms, len(devices))]


def available_bytes() -> tuple[int, int]:
    """Returns the memory that arms may use on a device, and on how many: CPU devices share what
    is free.
    """
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    known = [limit for limit in limits if limit]
    if known:
        return min(known), len(known)
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
    except FileNotFoundError:  # macOS has no such file; all of its memory, then
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 1
    return 1024 * int(lines["MemAvailable"].split()[0]), 1


def run_arms(
    arms: Sequence[Arm],
    *,
    together: int | None = None,
    devices: Sequence[Any] | None = None,
) -> dict[str, NotFinite]:
    """Trains one stage of every arm to its end, or continues it from its checkpoints.

    Afterwards `core.loop.run_stage` returns each arm's result at once. A loss that is not finite
    ends its own arm only.

    Args:
      together: arms in one call of the program; None takes one on a single CPU device and
        otherwise all.
      devices: to lay the arms on; None takes all.

    Returns:
      By name, the arms whose loss was not finite.

    Raises:
      core.errors.Preempted: SIGTERM or Ctrl-C; every arm's state is saved.
      UserError: a checkpoint that cannot be written or read.
      ValueError: the arms' stages differ in more than numbers.
    """
    first = arms[0]
    for arm in arms:
        if _length(arm) != _length(first):
            raise ValueError(f"expected arms of one stage and length, found {arm.name} another")
    if jax.process_count() > 1:
        raise UserError(
            f"expected a sweep in one process, found {jax.process_count()}; run its arms apart"
        )
    stop_if_terminated(f"stage {first.task.name}")
    devices = list(jax.devices() if devices is None else devices)
    if together is None:
        alone = len(devices) == 1 and devices[0].platform == "cpu"
        together = 1 if alone else len(arms)
    with contextlib.ExitStack() as stack:
        runs = [
            _ArmRun(arm, stack, device_of(place, len(arms), devices))
            for place, arm in enumerate(arms)
        ]
        live = [run for run in runs if run.live]
        programs = Programs(devices)
        termination = stack.enter_context(watched())
        while live:
            report = ProgressReport(
                first.task.name,
                min(run.step for run in live),
                first.config.max_steps,
                first.task.batch_size * len(live),
            )
            for run in live:
                run.report.shared = report
            with contextlib.closing(report):
                _train(live, programs, together, termination)
            live = [run for run in live if run.live]
        return {run.arm.name: run.failure for run in runs if run.failure is not None}


def _length(arm: Arm) -> tuple[str, LoopConfig]:
    """Returns what arms of one stage have in common: all but their rates."""
    config = dataclasses.replace(arm.config, learning_rate=0.0, min_learning_rate=0.0)
    return arm.task.name, config


class _ArmReport:
    """Writes an arm's part of the report that all arms share."""

    def __init__(self, name: str):
        self._name = name
        self.shared: ProgressReport | None = None
        self.leads = False

    def step(self, step: int, values: dict[str, float]) -> None:
        if self.leads and self.shared is not None:
            self.shared.step(step, values)

    def say(self, text: str) -> None:
        if self.shared is not None:
            self.shared.say(f"{self._name}: {text}")


class _ArmRun:
    """Holds an arm with its state between calls of the program."""

    def __init__(self, arm: Arm, stack: contextlib.ExitStack, device: Any):
        self.arm, self.report = arm, _ArmReport(arm.name)
        self.failure: NotFinite | None = None
        self._checkpoints = Checkpoints(stage_directory(arm.workdir, arm.task.name))
        stack.callback(self._checkpoints.close)
        self.state: State | None
        with jax.default_device(device):
            started = start_or_restore(arm.task, arm.config, self._checkpoints)
        state, self.progress, restored = started
        # Held to it: what is made there alone would go back to the first.
        self.state = jax.device_put(state, device)
        if self.progress.finished:
            self.state = None
            return
        if restored:
            name, step = arm.task.name, self.progress.step
            _LOG.info("%s: %s continues from the checkpoint of step %d", name, arm.name, step)
        writer = MetricWriter(arm.workdir, arm.task.name, self.progress.step)
        stack.callback(writer.close)
        self._run = StageRun(
            arm.task, arm.config, self._checkpoints, self.progress, self.report, writer
        )

    @property
    def live(self) -> bool:
        return not self.progress.finished and self.failure is None

    @property
    def step(self) -> int:
        return self.progress.step

    def after_update(self, values: Any, state: Callable[[], State], terminated: bool) -> None:
        try:
            self._run.after_update(values, state, terminated)
        except NotFinite as error:
            self.failure = error
            _LOG.warning("%s: %s", self.arm.name, error)

    def wait(self) -> None:
        self._checkpoints.wait()


def _train(
    live: list[_ArmRun], programs: Programs, together: int, termination: Termination
) -> None:
    """Takes the arms that are behind to where the next ones are, or as far as they go together.

    A kill between two saves leaves arms at different steps. Where half of a stack has finished,
    the rest goes on in a smaller one.
    """
    start = min(run.step for run in live)
    cohort = [run for run in live if run.step == start]
    until = min((run.step for run in live if run.step > start), default=None)
    for place, run in enumerate(cohort):
        run.report.leads = place == 0
    groups = -(-len(cohort) // together)
    width = -(-len(cohort) // groups)
    parts = [cohort[i : i + width] for i in range(0, len(cohort), width)]
    stacks = [_Stack(each, programs) for part in parts for each in programs.spread(part)]
    streams = {run.arm.task.stream: run.arm.task.batches(start) for run in cohort}
    compiled = False
    while True:
        batches = {key: next(stream) for key, stream in streams.items()}
        if compiled:
            for stack in stacks:
                stack.update(batches)
        else:
            with announced("compiling the training step", cohort[0].report.say):
                for stack in stacks:
                    stack.update(batches)
                    stack.wait()
            compiled = True
        terminated = termination.arrived()
        for stack in stacks:
            stack.after_update(terminated)
        stacks = [stack for stack in stacks if stack.live]
        still = [run for stack in stacks for run in stack.live]
        # Again where all have ended: their last evaluations take long.
        if terminated or (not still and termination.arrived()):
            for run in cohort:
                run.wait()
            saved = still or cohort
            raise termination.preempted(
                f": saved step {saved[0].step} of stage {saved[0].arm.task.name} of "
                f"{len(saved)} arms; the same command continues"
            )
        thin = any(2 * len(stack.live) <= stack.size for stack in stacks)
        if not still or thin or still[0].step == until:
            break
        wanted = {run.arm.task.stream for run in still}
        streams = {key: stream for key, stream in streams.items() if key in wanted}
    for stack in stacks:
        stack.unstack()
    for run in cohort:
        run.wait()


class _Stack:
    """Arms whose states lie together, leaf by leaf [A, ...]; a single arm's lies as it is."""

    def __init__(self, runs: list[_ArmRun], programs: Programs):
        self._runs, self._programs = runs, programs
        self.size = len(runs)
        numbers = [run.arm.task.numbers for run in runs]
        every = {name: [each[name] for each in numbers] for name in numbers[0]}
        differing = {name for name, values in every.items() if len(set(values)) > 1}
        self._numbers = {
            name: np.asarray(values if name in differing else values[0])
            for name, values in every.items()
        }
        states: list[Any] = [run.state for run in runs]
        steps = {int(state["step"]) for state in states}
        self._keys = [run.arm.task.stream for run in runs]
        self._program = programs.program(
            runs[0].arm.task,
            self.size,
            frozenset(differing),
            own_steps=len(steps) > 1,
            own_batches=len(set(self._keys)) > 1,
        )
        self._own_batches = len(set(self._keys)) > 1
        self._state = states[0] if self.size == 1 else self._stacked(states, len(steps) > 1)
        for run in runs:
            run.state = None
        self._values: Any = None

    def _stacked(self, states: list[Any], own_steps: bool) -> Any:
        return {
            name: self._programs.everywhere(states[0][name], self.size)
            if name == "step" and not own_steps
            else jax.tree.map(self._programs.stacked, *[state[name] for state in states])
            for name in states[0]
        }

    @property
    def live(self) -> list[_ArmRun]:
        return [run for run in self._runs if run.live]

    def update(self, batches: dict[Hashable, Batch]) -> None:
        rates = np.asarray([run.progress.plateau.learning_rate for run in self._runs], np.float32)
        if self._own_batches:
            # The stream of an arm that has ended has ended with it.
            going = next(iter(batches.values()))
            each = [batches.get(key, going) for key in self._keys]
            batch = jax.tree.map(lambda *parts: np.stack(parts), *each)
        else:
            batch = batches[self._keys[0]]
        rate = rates[0] if self.size == 1 else rates
        self._state, self._values = self._program(self._state, batch, rate, self._numbers)

    def wait(self) -> None:
        """Returns once the last update is through."""
        jax.block_until_ready(self._values)

    def after_update(self, terminated: bool) -> None:
        for place, run in enumerate(self._runs):
            if run.live:
                state = functools.partial(self._state_of, place)
                run.after_update(self._values[place], state, terminated)

    def unstack(self) -> None:
        """Hands every arm that goes on its state."""
        for place, run in enumerate(self._runs):
            if run.live:
                run.state = self._state_of(place)
        self._state = None

    def _state_of(self, place: int) -> State:
        if self.size == 1:
            return self._state

        def part(name, leaf):
            if name == "step" and leaf.ndim == 0:
                # From everywhere to where the arm is: alone it is on one device.
                return jax.device_put(leaf, self._programs.device(place, self.size))
            return row(leaf, place)

        return {
            name: jax.tree.map(lambda leaf, name=name: part(name, leaf), tree)
            for name, tree in self._state.items()
        }
