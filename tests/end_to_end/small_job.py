"""One process of a small job: a table cut over the devices, trained by the loop of all systems.

    python small_job.py WORKDIR COORDINATOR PROCESSES PROCESS STEPS SECONDS_A_STEP BROKEN_STEP

COORDINATOR '-' is one process on its own. What it reads it notes in WORKDIR.PROCESS.read. The last
process's part of the batch of BROKEN_STEP, from 1, has a NaN; 0 is no step.
"""

import functools
import logging
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from core import cli, distributed
from core.errors import Preempted
from core.loop import LoopConfig, run_stage
from core.partitioning import MODEL, Partition, make_mesh
from core.workdir import open_workdir

ROWS, WIDTH, BATCH = 256, 8, 16


class SmallTask:
    name, selection = "small", "score"
    steps_per_epoch, batch_size = 1, BATCH

    def __init__(self, partition, read, seconds, broken_step=0):
        self.partition, self._read, self._seconds = partition, read, seconds
        self._broken_step = broken_step

    def start(self):
        table = jax.random.normal(jax.random.key(0), (ROWS, WIDTH))
        return {"step": jnp.int32(0), "tables": {"item": table}, "w": jnp.ones(WIDTH)}

    def init(self):
        shardings = self.partition.shardings(jax.eval_shape(self.start))
        return jax.jit(self.start, out_shardings=shardings)()

    def batches(self, start_step):
        share = BATCH // jax.process_count()
        for step in range(start_step, 10**9):
            time.sleep(self._seconds)
            first = step * BATCH + jax.process_index() * share
            examples = np.arange(first, first + share)
            print(step, *examples, file=self._read, flush=True)
            ids = (examples * 7919 % ROWS).astype(np.int32)
            target = np.sin(examples).astype(np.float32)
            if step + 1 == self._broken_step and jax.process_index() == jax.process_count() - 1:
                target[-1] = np.nan
            yield {"ids": ids, "target": target}

    def train_step(self, state, batch, learning_rate):
        def loss_of(tables, w):
            return jnp.mean((tables["item"][batch["ids"]] @ w - batch["target"]) ** 2)

        loss, (tables, w) = jax.value_and_grad(loss_of, argnums=(0, 1))(state["tables"], state["w"])
        return {
            "step": state["step"] + 1,
            "tables": jax.tree.map(lambda p, g: p - learning_rate * g, state["tables"], tables),
            "w": state["w"] - learning_rate * w,
        }, {"loss": loss}

    @functools.cached_property
    def _score(self):
        return jax.jit(lambda s: -jnp.abs(s["w"]).sum(), out_shardings=self.partition.replicated)

    def evaluate(self, state):
        return {"score": float(self._score(state))}


def partition_of(devices=None):
    return Partition(make_mesh(1, -1, devices), (("tables/", PartitionSpec(MODEL)),))


def main():
    workdir, coordinator, processes, process, steps, seconds, broken_step = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, force=True)
    watch = None
    if coordinator != "-":
        watch = distributed.start(coordinator, int(processes), int(process), 60)

    def body():
        print(distributed.describe(), flush=True)
        config = LoopConfig(
            max_steps=int(steps),
            eval_every=6,
            checkpoint_every=4,
            log_every=1,
            learning_rate=0.05,
            min_learning_rate=0.05,
            plateau_factor=1.0,
            plateau_patience=10**6,
            stop_patience=10**6,
        )
        with open(f"{workdir}.{process}.read", "a", encoding="utf-8") as read:
            task = SmallTask(partition_of(), read, float(seconds), int(broken_step))
            try:
                run_stage(task, config, open_workdir(workdir, {"steps": int(steps)}))
            except Preempted as stop:
                print(stop, flush=True)
                return
        print("finished", flush=True)

    cli.run_watched(watch, body)


if __name__ == "__main__":
    main()
