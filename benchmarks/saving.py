"""Measures how long a save holds up training, beside the time of one step, on random data.

    python -m benchmarks.saving --folder=DIR [--config=C] [--items=673000] [--batch=1024]

A save returns once the arrays are copied off the devices and writes while training goes on; here
each begins after the one before is on disk. Steps are timed without a save beside them. Several
processes, with tables cut over them by config.mesh, take --coordinator, --processes and --process
as launch.train does; DIR is one that they share, and process 0 prints its own times.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from core import cli


def define_flags() -> None:
    cli.define_job_flags()
    config_flags.DEFINE_config_file("config", "configs/lcr_ser_qilin.py", "Of LCR-SER.")
    flags.DEFINE_string("folder", None, "Where checkpoints are written, and removed again.")
    flags.DEFINE_integer("items", 673_000, "Rows of the item table.", lower_bound=1)
    flags.DEFINE_integer("batch", 1024, "Examples a step.", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "Steps, and saves, behind a median.", lower_bound=1)


cli.begin(__name__, define_flags)

import contextlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.random_tasks import RandomTasks, TableSizes, require_lcr_ser
from core import distributed
from core.checkpoints import Checkpoints
from core.errors import UserError
from core.loop import compile_step
from core.workdir import is_writer
from input_pipelines.batches import BatchShape
from lcrsr.ranker_experiment import partition_of

_USERS, _WORDS = 22_700, 395_000
_SHAPE = BatchShape(rec_length=30, search_length=30, words=5, clicks=5, candidates=5)


def measure(config: Any, folder: str, items: int, batch_size: int, repeats: int) -> dict[str, Any]:
    """Medians of seconds a step, until a save returns, and until it is on disk.

    Args:
      config: of LCR-SER.
      folder: where the checkpoints are written; they are removed again.
      items: rows of the item table.
      repeats: steps, and saves, behind a median.
    """
    partition = partition_of(config, config.model.width)
    sizes = TableSizes(_USERS, items, _WORDS)
    task = RandomTasks(config, _SHAPE, sizes, partition).train(batch_size)
    state = task.init()
    step = compile_step(task, state)
    put = jax.device_put if partition is None else partition.put_batch
    batch, rate = put(next(task.batches(0))), np.float32(1e-3)

    def train() -> float:
        nonlocal state
        started = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch, rate))
        return time.perf_counter() - started

    train()  # compiles
    train()
    steps = [train() for _ in range(repeats)]
    blocked, written = [], []
    with _shared_folder(folder) as directory:
        checkpoints = Checkpoints(os.path.join(directory, "checkpoints"))
        for number in range(repeats):
            train()
            started = time.perf_counter()
            checkpoints.save(number, state, {"step": number}, None)
            blocked.append(time.perf_counter() - started)
            checkpoints.wait()
            written.append(time.perf_counter() - started)
        checkpoints.close()
    return {
        "step_seconds": statistics.median(steps),
        "save_blocks_seconds": statistics.median(blocked),
        "save_blocks_each": blocked,
        "on_disk_seconds": statistics.median(written),
        "save_blocks_over_step": statistics.median(blocked) / statistics.median(steps),
        "state_gigabytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9,
    }


@contextlib.contextmanager
def _shared_folder(parent: str) -> Iterator[str]:
    """Makes a new folder for all processes; process 0 makes it and removes it."""
    made = tempfile.mkdtemp(dir=parent, prefix="saves-") if is_writer() else None
    try:
        yield distributed.of_first(made)
    finally:
        if made is not None:
            shutil.rmtree(made)


def main() -> None:
    cli.run_job(_measure, _measure)


def _measure() -> None:
    values = flags.FLAGS
    if not values.folder or not os.path.isdir(values.folder):
        raise UserError(
            f"expected --folder=DIR of the disk to write to, found {values.folder}; pass a folder"
        )
    require_lcr_ser(values.config)
    measured = measure(values.config, values.folder, values.items, values.batch, values.repeats)
    if is_writer():
        print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    cli.run(main)
