"""Times a sweep's arms side by side against the same runs one after another.

    python -m benchmarks.arms --folder=DIR [--steps=100] [--arms=6] [--together=0]

Arms are K = 0, 1, .. of LCR-SER on random batches at the embedded sample's sizes, contrastive loss
and dropout on, trained by the loop of all systems with its checkpoints; every run alone compiles
its own step, as a process of its own does. Reading data, evaluation and imports are in neither
figure. CPU seconds beside wall clock, since a shared machine stretches the latter.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from core import cli


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the program's flags among `values`."""
    config_flags.DEFINE_config_file(
        "config",
        "configs/lcr_ser_qilin.py",
        "Config file: configs/lcr_ser.py:DATASET.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "folder", None, "An empty folder for the runs' checkpoints.", flag_values=values
    )
    for name, default, least, text in (
        ("steps", 100, 1, "Updates of every run."),
        ("arms", 6, 1, "How many: K = 0, 1, .."),
        ("together", 0, 0, "Arms in one call of the program; 0: the default here."),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=least, flag_values=values)


cli.begin(__name__, define_flags)

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict

from benchmarks.random_tasks import RandomTasks, TableSizes, require_lcr_ser
from core.errors import UserError
from core.files import expanded
from core.loop import LoopConfig, compile_step, run_stage
from core.results import device
from core.workdir import Workdir, check_no_file, commit_id
from input_pipelines.batches import BatchShape
from studies.ablation.arm_programs import Programs
from studies.ablation.arms import Arm, run_arms

_SHAPE = BatchShape(rec_length=20, search_length=20, words=6, clicks=2, candidates=5)
_SIZES = TableSizes(users=3000, items=2000, words=500)
_BATCH = 128
Seconds = tuple[float, float]  # by the clock, of the CPU


def _task(config: config_dict.ConfigDict, active_steps: int, arms: int) -> Any:
    changed = config_dict.ConfigDict(config.to_dict())
    changed.train.active_steps = active_steps
    return RandomTasks(changed, _SHAPE, _SIZES, max_steps=arms - 1).train(_BATCH)


def _timed(work: Callable[[], Any]) -> Seconds:
    wall, cpu = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - wall, time.process_time() - cpu


def compiling(config: config_dict.ConfigDict, arms: int, together: int) -> list[Seconds]:
    """Measures tracing and compiling of one run's step, and of a program of `together` of the
    arms.
    """
    task = _task(config, arms - 1, arms)
    state, batch, rate = jax.eval_shape(task.init), next(task.batches(0)), np.float32(1e-3)
    alone = compile_step(task, state)

    def stacked(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((together, *leaf.shape), leaf.dtype) if together > 1 else leaf

    program = Programs(jax.devices()[:1]).program(
        task, together, frozenset(["active_steps"]), own_steps=False, own_batches=False
    )
    arguments = (
        {name: jax.tree.map(stacked, tree) for name, tree in state.items()}
        | {"step": state["step"]},
        batch,
        np.full(together, rate) if together > 1 else rate,
        {name: np.asarray(value) for name, value in task.numbers.items()}
        | ({"active_steps": np.arange(together)} if together > 1 else {}),
    )
    lowered: Any = program
    return [
        _timed(lambda: alone.lower(state, batch, rate).compile()),
        _timed(lambda: lowered.lower(*arguments).compile()),
    ]


def training(
    config: config_dict.ConfigDict, arms: int, steps: int, together: int | None, folder: str
) -> list[Seconds]:
    """Measures all runs one after another, and the sweep."""
    loop = LoopConfig(
        max_steps=steps,
        eval_every=max(1, steps // 2),
        checkpoint_every=steps,
        log_every=20,
        learning_rate=1e-3,
        min_learning_rate=1e-3,
        plateau_factor=1.0,
        plateau_patience=9,
        stop_patience=9,
    )
    tasks = [_task(config, k, arms) for k in range(arms)]

    def alone() -> None:
        for k, task in enumerate(tasks):
            run_stage(task, loop, Workdir(os.path.join(folder, f"alone{k}")))

    def side_by_side() -> None:
        named = [
            Arm(f"K = {k}", task, loop, Workdir(os.path.join(folder, f"arm{k}")))
            for k, task in enumerate(tasks)
        ]
        run_arms(named, together=together)

    return [_timed(alone), _timed(side_by_side)]


def empty_folder(name: str | None) -> str:
    """Returns the folder that a flag names, as a path, which may be missing.

    Raises:
      UserError: none is named, it has files, or it or a folder above it is a file.
    """
    folder = expanded(name, "--folder") if name else ""
    if not folder or (os.path.isdir(folder) and os.listdir(folder)):
        raise UserError(f"expected --folder=DIR of an empty folder, found {name!r}; pass another")
    check_no_file(folder, "--folder")
    return folder


def main() -> None:
    """Prints four lines."""
    values = flags.FLAGS
    folder = empty_folder(values.folder)
    require_lcr_ser(values.config)
    together = values.together or (1 if jax.default_backend() == "cpu" else values.arms)
    together = min(together, values.arms)
    print(f"commit {commit_id()}, {device()}, {values.arms} arms, {together} in one call")
    measured = {
        "compiling, one run and the arms' program": compiling(values.config, values.arms, together),
        f"training for {values.steps} updates, one after another and side by side": training(
            values.config, values.arms, values.steps, together, folder
        ),
    }
    for name, (alone, side) in measured.items():
        for seconds, one, other in zip(("s", "CPU s"), alone, side, strict=True):
            print(f"{name}: {one:.1f} {seconds}, {other:.1f} {seconds}, {other / one:.2f} times")


if __name__ == "__main__":
    cli.run(main)
