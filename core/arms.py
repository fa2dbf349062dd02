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
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from core.checkpoints import Checkpoints
from core.errors import UserError
from core.loop import (
    LoopConfig,
    NotFinite,
    Preempted,
    StageRun,
    Termination,
    stage_directory,
    start_or_restore,
    stop_if_terminated,
    watched,
)
from core.metric_writers import MetricWriter, ProgressReport
from core.task import Batch, State, Task
from core.workdir import Workdir

_LOG = logging.getLogger(__name__)
ARM = "arm"
# The state, the one it started from and the best one that a later stage starts from.
_COPIES = 3
_USED_SHARE = 0.8


class ArmTask(Task, Protocol):
    """A task whose arithmetic settings can be traced.

    Attributes:
      numbers: these settings by name, plain numbers.
      stream: tasks of one sweep whose `stream` is equal read the same batches.
    """

    @property
    def numbers(self) -> dict[str, Any]: ...

    @property
    def stream(self) -> Hashable: ...

    def with_numbers(self, numbers: dict[str, Any]) -> Task:
        """The same task with other values, traced or not, of everything in `numbers`."""
        ...


@dataclasses.dataclass(frozen=True)
class Arm:
    """One run of a sweep: its name in messages, one of its stages, and its folder."""

    name: str
    task: ArmTask
    config: LoopConfig
    workdir: Workdir


def arms_that_fit(task: Task, available: int) -> int:
    """How many arms of a task `available` bytes hold, at least 1; temporaries are left a fifth."""
    shapes = jax.tree.leaves(jax.eval_shape(task.init))
    one = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes if leaf.ndim)
    return max(1, int(_USED_SHARE * available / (_COPIES * one)))


def available_bytes() -> int:
    """Memory that arms may use: one accelerator's, or what the machine has free.

    One even where arms end up on several: the first device makes and restores all of them.
    """
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    known = [limit for limit in limits if limit]
    if known:
        return min(known)
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
    except FileNotFoundError:  # macOS has no such file; all of its memory, then
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 1024 * int(lines["MemAvailable"].split()[0])


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
      devices: to lay the arms on; None takes all. A number of them that divides the arms is used.

    Returns:
      By name, the arms whose loss was not finite.

    Raises:
      core.loop.Preempted: SIGTERM; every arm's state is saved.
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
        runs = [_ArmRun(arm, stack) for arm in arms]
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
    """What arms of one stage have in common: all but their rates."""
    config = dataclasses.replace(arm.config, learning_rate=0.0, min_learning_rate=0.0)
    return arm.task.name, config


class _ArmReport:
    """An arm's part of the report that all arms share."""

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
    """An arm with its state between calls of the program."""

    def __init__(self, arm: Arm, stack: contextlib.ExitStack):
        self.arm, self.report = arm, _ArmReport(arm.name)
        self.failure: NotFinite | None = None
        self._checkpoints = Checkpoints(stage_directory(arm.workdir, arm.task.name))
        stack.callback(self._checkpoints.close)
        self.state: State | None
        found = start_or_restore(arm.task, arm.config, self._checkpoints)
        self.state, self.progress, restored = found
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
    stacks = [_Stack(cohort[i : i + width], programs) for i in range(0, len(cohort), width)]
    streams = {run.arm.task.stream: run.arm.task.batches(start) for run in cohort}
    while True:
        batches = {key: next(stream) for key, stream in streams.items()}
        for stack in stacks:
            stack.update(batches)
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
            raise Preempted(
                f"SIGTERM: saved step {saved[0].step} of stage {saved[0].arm.task.name} of "
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
        stacked = {
            name: jax.tree.map(lambda *leaves: jnp.stack(leaves), *[s[name] for s in states])
            for name in states[0]
        }
        if not own_steps:
            stacked["step"] = states[0]["step"]
        return self._programs.placed(stacked, self.size)

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
            return leaf if name == "step" and leaf.ndim == 0 else _row(leaf, place)

        return {
            name: jax.tree.map(lambda leaf, name=name: part(name, leaf), tree)
            for name, tree in self._state.items()
        }


def _row(leaf: jax.Array, place: int) -> jax.Array:
    """leaf[place], from the device that holds it."""
    for shard in leaf.addressable_shards:
        start, stop, _ = shard.index[0].indices(leaf.shape[0])
        if start <= place < stop:
            return shard.data[place - start]
    raise AssertionError(f"no device of this process holds arm {place}")


class Programs:
    """The compiled steps, by what of their arguments has an arm axis."""

    def __init__(self, devices: list[Any]):
        self._devices = devices
        self._made: dict[Any, Any] = {}

    def _mesh(self, size: int) -> Mesh | None:
        count = max(n for n in range(1, len(self._devices) + 1) if size % n == 0)
        return Mesh(np.asarray(self._devices[:count]), (ARM,)) if count > 1 else None

    def placed(self, state: Any, size: int) -> Any:
        """A stacked state cut over the mesh by arms."""
        mesh = self._mesh(size)
        if mesh is None:
            return state

        def put(leaf):
            spec = PartitionSpec(ARM) if leaf.ndim else PartitionSpec()
            return jax.device_put(leaf, jax.sharding.NamedSharding(mesh, spec))

        return jax.tree.map(put, state)

    def program(
        self,
        task: ArmTask,
        size: int,
        differing: frozenset[str],
        *,
        own_steps: bool,
        own_batches: bool,
    ) -> Callable[..., Any]:
        """(state, batch, rate, numbers) -> (state, one dictionary of statistics an arm)."""
        key = (size, differing, own_steps, own_batches)
        if key not in self._made:
            self._made[key] = self._make(task, *key)
        return self._made[key]

    def _make(self, task, size, differing, own_steps, own_batches):
        def one(state, batch, rate, numbers):
            return task.with_numbers(numbers).train_step(state, batch, rate)

        if size == 1:

            def alone(*arguments):
                state, values = one(*arguments)
                return state, (values,)

            return jax.jit(alone, donate_argnums=0)
        arms, everywhere = 0, None
        of_state: dict[str, int | None] = dict.fromkeys(jax.eval_shape(task.init), arms)
        if not own_steps:
            of_state["step"] = everywhere
        of_numbers = {name: arms if name in differing else everywhere for name in task.numbers}
        axes = (of_state, arms if own_batches else everywhere, arms, of_numbers)
        step = jax.vmap(one, in_axes=axes, out_axes=(of_state, arms))
        mesh = self._mesh(size)
        if mesh is not None:
            specs = jax.tree.map(
                lambda axis: PartitionSpec() if axis is None else PartitionSpec(ARM),
                axes,
                is_leaf=lambda axis: axis is None,
            )
            step = jax.shard_map(
                step,
                mesh=mesh,
                in_specs=specs,
                out_specs=(specs[0], PartitionSpec(ARM)),
                check_vma=False,
            )

        def together(*arguments):
            state, values = step(*arguments)
            return state, tuple(jax.tree.map(lambda v, i=i: v[i], values) for i in range(size))

        return jax.jit(together, donate_argnums=0)
