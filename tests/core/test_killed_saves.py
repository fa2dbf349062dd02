"""Checkpoints of a sharded table by a process that is killed at random moments of its saves."""

import os
import pathlib
import subprocess
import sys

import jobs
import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
# Forks a saver for every trial, so that imports are paid for once; JAX starts after the fork.
PROGRAM = """
import os, random, signal, sys, time
import jax, numpy as np
from core.checkpoints import Checkpoints
from core.partitioning import Partition, make_mesh
from jax.sharding import PartitionSpec

folder, trials = sys.argv[1], int(sys.argv[2])

def save_for_ever(out):
    partition = Partition(make_mesh(1, -1), (("table", PartitionSpec("model")),))
    def state(step):
        values = {"table": np.full((4096, 64), step, np.float32), "w": np.full(9, step, np.int32)}
        return jax.tree.map(jax.device_put, values, partition.shardings(values))
    checkpoints = Checkpoints(folder)
    restored = checkpoints.restore(partition.abstract(state(0)))
    step = 0
    if restored is not None:
        found, progress, step = restored
        for leaf in jax.tree.leaves(found):
            assert (np.asarray(leaf) == step).all(), step
        assert progress == {"step": step}
    print("restored", step, file=out, flush=True)
    while True:
        step += 1
        # Returns once the save before it is finished.
        checkpoints.save(step, state(step), {"step": step}, None)
        print("finished", step - 1, file=out, flush=True)

draw = random.Random(0)
for trial in range(trials):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            save_for_ever(os.fdopen(write, "w"))
        finally:
            os._exit(1)
    os.close(write)
    lines = os.fdopen(read)
    print(lines.readline().strip(), flush=True)
    for _ in range(2):
        line = lines.readline()
    time.sleep(draw.uniform(0, 0.2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    finished = [l for l in (line, *lines) if l.endswith("\\n")][-1]
    partial = [n for n in os.listdir(folder) if not n.isdigit()]
    print(finished.strip(), len(partial), flush=True)
"""


@pytest.mark.slow
def test_20_kills_leave_the_last_finished_checkpoint_whole(tmp_path):
    trials = 20
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "checkpoints"), str(trials)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": jobs.xla_flags(8)},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr
    words = [line.split() for line in done.stdout.splitlines()]
    restored = [int(w[1]) for w in words if w[0] == "restored"]
    finished = [int(w[1]) for w in words if w[0] == "finished"]
    assert len(restored) == len(finished) == trials, done.stderr
    assert restored[0] == 0
    for before, after in zip(finished[:-1], restored[1:], strict=True):
        assert after in (before, before + 1)
    # Some kills came in the middle of a save, or this has shown nothing.
    assert any(int(w[2]) for w in words if w[0] == "finished"), done.stdout
