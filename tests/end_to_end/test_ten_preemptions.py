"""A job preempted ten times at random, on 1, 2 and 4 processes in turn; four devices throughout."""

import os
import pathlib
import random
import signal
import sys
import time

import jax
import jobs
import numpy as np
import pytest
import small_job

from core.checkpoints import Checkpoints

HERE = pathlib.Path(__file__).parent
DEVICES, STEPS, SECONDS = 4, 600, 0.05


def launch(workdir, processes, seconds=SECONDS):
    """The processes of a job, which share four CPU devices."""
    address = f"127.0.0.1:{jobs.free_port()}" if processes > 1 else "-"
    # XLA's threads are as many as it is told, or devices that share a process wait for each other.
    variables = {"XLA_FLAGS": jobs.xla_flags(DEVICES // processes), "NPROC": "8"}
    environment = os.environ | variables | {"PYTHONPATH": str(HERE.parent.parent)}
    command = [sys.executable, str(HERE / "small_job.py"), str(workdir), address, str(processes)]
    return [
        jobs.Process([*command, str(number), str(STEPS), str(seconds), "0"], environment)
        for number in range(processes)
    ]


def lines(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def preempted(job, workdir, chance):
    """Ends a job at a random moment of its training by a random signal to one of its processes."""
    number, victim = chance.choice([signal.SIGTERM, signal.SIGKILL]), chance.choice(job)
    before, more = lines(workdir), chance.randint(1, 10)
    deadline = time.monotonic() + 120
    while victim.poll() is None and lines(workdir) < before + more:
        # A job that goes on drops the lines after its checkpoint first.
        before = min(before, lines(workdir))
        assert time.monotonic() < deadline, jobs.endings(job, 1)
        time.sleep(0.005)
    time.sleep(chance.uniform(0.0, 0.1))
    assert victim.poll() is None, jobs.endings(job, 1)
    victim.send_signal(number)
    codes, outputs = jobs.endings(job)
    wanted = {0} if number == signal.SIGTERM else {3, -signal.SIGKILL}
    assert set(codes) <= wanted, outputs
    print(f"{len(job)} processes, {number.name} after {lines(workdir)} lines", flush=True)


def outcome(workdir):
    """The losses by step, and the leaves of the last state."""
    losses = {n["step"]: n["train/loss"] for n in jobs.lines_of(workdir) if "train/loss" in n}
    partition = small_job.partition_of(jax.devices()[:DEVICES])
    task = small_job.SmallTask(partition, None, 0.0)
    checkpoints = Checkpoints(str(workdir / "checkpoints" / "small"))
    state, _, step = checkpoints.restore(partition.abstract(jax.eval_shape(task.start)))
    checkpoints.close()
    assert step == STEPS
    return losses, [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The outcomes by the number of processes."""
    outcomes = {}
    for processes in (1, 2):
        workdir = tmp_path_factory.mktemp("undisturbed") / "w"
        codes, outputs = jobs.endings(launch(workdir, processes, 0.0))
        assert codes == [0] * processes, outputs
        outcomes[processes] = outcome(workdir)
    return outcomes


def difference(first, second):
    """The largest relative difference of two outcomes' losses."""
    assert first[0].keys() == second[0].keys()
    return max(abs(first[0][step] - second[0][step]) / second[0][step] for step in first[0])


@pytest.mark.slow
@pytest.mark.parametrize("turns", [(2,), (1, 2, 4)], ids=str)
def test_preempted_ten_times_it_ends_as_undisturbed(undisturbed, tmp_path, turns):
    chance, workdir = random.Random(26), tmp_path / "w"
    for turn in range(10):
        preempted(launch(workdir, turns[turn % len(turns)]), workdir, chance)
    codes, outputs = jobs.endings(launch(workdir, turns[0], 0.0))
    assert set(codes) == {0}, outputs
    found = outcome(workdir)
    if turns == (2,):
        assert difference(found, undisturbed[2]) == 0.0
        for ours, theirs in zip(found[1], undisturbed[2][1], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    # One process adds up sums over devices in another order than several.
    assert difference(found, undisturbed[1]) < 1e-5
