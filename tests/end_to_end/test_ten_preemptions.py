"""One run of LCR-SER, preempted ten times at random, on 1, 2 and 4 processes in turn."""

import os
import random
import signal
import sys
import time

import conftest
import jax
import jobs
import numpy as np
import pytest

from core.checkpoints import Checkpoints
from experiments.restored import Restored

# A mesh of four devices throughout: cut otherwise, sums would be added up in another order.
DEVICES = 4
PROCESSES = (1, 2, 4)
SMALL = conftest.SMALL | {
    "on_sample.users": 80,
    "mesh.data": 1,
    "mesh.model": DEVICES,
    "train.max_epochs": 20.0,
    "train.stop_patience": 1000,
    "rl.enabled": False,
    "eval.protocols": ("neg99",),
    "loop.log_every": 4,
    "loop.checkpoint_every": 12,
}


def start(tmp_path, workdir, processes):
    flags = ["--config=configs/lcr_ser_qilin.py", f"--config.cache_dir={tmp_path / 'cache'}"]
    flags += [f"--config.{key}={value}" for key, value in SMALL.items()]
    flags.append(f"--workdir={workdir}")
    if processes > 1:
        flags += [f"--coordinator=127.0.0.1:{jobs.free_port()}", f"--processes={processes}"]
    # Alone: more threads than the mesh has devices, or on two cores they would wait for each other.
    devices = DEVICES // processes if processes > 1 else 8
    environment = os.environ | {"XLA_FLAGS": jobs.xla_flags(devices)}
    numbers = [[f"--process={number}"] if processes > 1 else [] for number in range(processes)]
    command = [sys.executable, "-m", "launch.train", *flags]
    return [jobs.Process([*command, *number], environment, cwd=jobs.ROOT) for number in numbers]


def lines(workdir):
    """How many lines of its numbers a run has written."""
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def preempted(job, workdir, chance):
    """Sends SIGTERM or SIGKILL to one process of a job at a random moment of its training.

    Returns (signal, exit codes, outputs).
    """
    number, victim = chance.choice([signal.SIGTERM, signal.SIGKILL]), chance.choice(job)
    before, more = lines(workdir), chance.randint(1, 10)
    # A job that goes on drops the lines after its checkpoint first.
    deadline = time.monotonic() + 200
    while victim.poll() is None and time.monotonic() < deadline:
        now = lines(workdir)
        before = min(before, now)
        if now >= before + more:
            break
        time.sleep(0.005)
    time.sleep(chance.uniform(0.0, 0.1))
    assert victim.poll() is None, jobs.endings(job, 1)
    victim.send_signal(number)
    return number, *jobs.endings(job)


def state_of(workdir):
    """The newest state, its step and progress, and the rows without what differs by time."""
    restored = Restored(str(workdir), "train")
    checkpoints = Checkpoints(str(workdir / "checkpoints" / "train"))
    state, progress, step = checkpoints.restore(restored.experiment.abstract_state("train"))
    checkpoints.close()
    rows = [{k: v for k, v in r.items() if k != "written"} for r in jobs.rows_of(workdir).values()]
    return jax.tree.map(np.asarray, state), (step, progress), rows


@pytest.mark.slow
def test_preempted_ten_times_it_ends_in_the_same_bits(tmp_path):
    whole, often = tmp_path / "whole", tmp_path / "often"
    jobs.finished(*start(tmp_path, whole, 1))
    chance = random.Random(26)
    for turn in range(10):
        job = start(tmp_path, often, PROCESSES[turn % 3])
        number, codes, outputs = preempted(job, often, chance)
        wanted = {0} if number == signal.SIGTERM else {3, -signal.SIGKILL}
        assert set(codes) <= wanted, outputs
        print(f"{len(job)} processes, {number.name}: {lines(often)} lines")
    codes, outputs = jobs.endings(start(tmp_path, often, 2))
    assert codes == [0, 0], outputs
    (expected, *numbers), (state, *found) = state_of(whole), state_of(often)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert found == numbers
