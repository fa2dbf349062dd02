"""Jobs of 2 and 4 processes on this machine: as one process, killed, stopped, relaunched."""

import os
import pathlib
import re
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
STEPS = 18


def launch(workdir, processes, *, seconds=0.0, steps=STEPS, broken_step=0):
    """The processes of a job of one CPU device each."""
    address = f"127.0.0.1:{jobs.free_port()}" if processes > 1 else "-"
    variables = {"XLA_FLAGS": jobs.xla_flags(1), "PYTHONPATH": str(HERE.parent.parent)}
    environment = os.environ | variables
    arguments = (workdir, address, processes)
    return [
        jobs.Process(
            [
                sys.executable,
                str(HERE / "small_job.py"),
                *map(str, (*arguments, number, steps, seconds, broken_step)),
            ],
            environment,
        )
        for number in range(processes)
    ]


def run(workdir, processes, **options):
    codes, outputs = jobs.endings(launch(workdir, processes, **options))
    assert codes == [0] * processes, outputs
    assert all("finished" in output for output in outputs)
    return outputs


def losses(workdir):
    lines = jobs.lines_of(workdir)
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def read(workdir, process):
    """[(step, examples)] that a process has read."""
    text = pathlib.Path(f"{workdir}.{process}.read").read_text(encoding="utf-8")
    return [list(map(int, line.split())) for line in text.splitlines()]


def await_steps(workdir, steps):
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if (workdir / "metrics.jsonl").exists() and len(losses(workdir)) >= steps:
            return
        time.sleep(0.05)
    pytest.fail(f"expected {steps} steps in {workdir}")


def state_of(workdir, devices):
    """The newest checkpoint, on so many of this process's devices."""
    partition = small_job.partition_of(jax.devices()[:devices])
    task = small_job.SmallTask(partition, None, 0.0)
    checkpoints = Checkpoints(str(workdir / "checkpoints" / "small"))
    restored = checkpoints.restore(partition.abstract(jax.eval_shape(task.start)))
    checkpoints.close()
    assert restored is not None
    return restored


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone") / "w"
    run(workdir, 1)
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_are_one_process(processes, alone, tmp_path):
    workdir = tmp_path / "w"
    run(workdir, processes)
    expected = losses(alone)
    assert len(expected) == STEPS
    assert losses(workdir) == pytest.approx(expected, rel=1e-5)
    parts = [read(workdir, number) for number in range(processes)]
    for step, rows in enumerate(zip(*parts, strict=True)):
        assert {row[0] for row in rows} == {step}
        # In the order of one process, and every example once.
        examples = [example for row in rows for example in row[1:]]
        assert examples == list(range(step * small_job.BATCH, (step + 1) * small_job.BATCH))
    # Every process wrote its own rows of the table alone.
    share = 4 * small_job.ROWS * small_job.WIDTH / processes
    for number in range(processes):
        folder = workdir / f"checkpoints/small/{STEPS}/state/ocdbt.process_{number}"
        written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert 0.8 * share < written < share + 2500
    expected_state = jax.tree.leaves(state_of(alone, 1)[0])
    for devices in (1, 2, 8):
        state, progress, step = state_of(workdir, devices)
        assert step == progress["step"] == STEPS
        assert len(state["tables"]["item"].sharding.device_set) == devices
        for ours, theirs in zip(jax.tree.leaves(state), expected_state, strict=True):
            np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_one_is_killed_the_rest_end_and_the_relaunched_job_ends_the_same(killed, alone, tmp_path):
    workdir = tmp_path / "w"
    job = launch(workdir, 2, seconds=1.0)
    jobs.await_checkpoint(workdir / "checkpoints" / "small", job, 240)
    job[killed].send_signal(signal.SIGKILL)
    began = time.monotonic()
    codes, outputs = jobs.endings(job, timeout=120)
    took = time.monotonic() - began
    assert took < 120
    other = 1 - killed
    assert codes[killed] == -signal.SIGKILL and codes[other] == 3, outputs
    assert f"error: expected process {killed} of 2 to go on" in outputs[other]
    assert "Traceback" not in outputs[other]
    output = run(workdir, 2)[0]
    assert re.search(r"continues from the checkpoint of step ([4-9]|1\d)\b", output), output
    assert losses(workdir) == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.slow
def test_sigterm_to_all_saves_the_same_step_and_exits_with_0(alone, tmp_path):
    workdir = tmp_path / "w"
    job = launch(workdir, 2, seconds=1.0)
    await_steps(workdir, 2)
    for process in job:
        process.send_signal(signal.SIGTERM)
    codes, outputs = jobs.endings(job)
    assert codes == [0, 0], outputs
    said = [line for output in outputs for line in output.splitlines() if "SIGTERM: saved" in line]
    assert len(said) == 2 and said[0] == said[1], outputs
    saved = int(said[0].split("step ")[1].split()[0])
    assert state_of(workdir, 2)[2] == saved < STEPS
    run(workdir, 2)
    assert losses(workdir) == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.slow
def test_a_loss_that_is_nan_ends_all_with_the_same_line(tmp_path):
    codes, outputs = jobs.endings(launch(tmp_path / "w", 2, broken_step=10), timeout=240)
    assert codes == [2, 2], outputs
    for output in outputs:
        (line,) = [line for line in output.splitlines() if line.startswith("error:")]
        assert "expected a finite loss, found nan at step 10 of stage small" in line
        assert "Traceback" not in output
    assert state_of(tmp_path / "w", 2)[2] == 8


def cut_shard(workdir, step, process):
    """Cuts the files that `process` wrote of its rows of a checkpoint."""
    folder = workdir / f"checkpoints/small/{step}/state/ocdbt.process_{process}/d"
    for path in folder.iterdir():
        os.truncate(path, path.stat().st_size // 2)


@pytest.mark.slow
def test_a_shard_that_one_process_cannot_read_sends_all_back_to_the_same_step(alone, tmp_path):
    workdir = tmp_path / "w"
    run(workdir, 2)
    cut_shard(workdir, STEPS, 1)
    outputs = run(workdir, 2)
    assert "continues from the checkpoint of step 16" in outputs[0]
    assert f"checkpoint {STEPS} in" in outputs[0] and "by process 1" in outputs[0]
    assert losses(workdir) == pytest.approx(losses(alone), rel=1e-5)
    expected = jax.tree.leaves(state_of(alone, 1)[0])
    for ours, theirs in zip(jax.tree.leaves(state_of(workdir, 1)[0]), expected, strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-4, atol=1e-6)

    for step in os.listdir(workdir / "checkpoints/small"):
        cut_shard(workdir, step, 1)
    codes, outputs = jobs.endings(launch(workdir, 2), timeout=240)
    assert codes == [2, 2], outputs
    for output in outputs:
        assert re.search(r"error: expected a readable checkpoint in .*, found \d+ that", output)
