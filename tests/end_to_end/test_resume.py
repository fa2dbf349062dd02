"""SIGKILL and SIGTERM in the middle of a training, then the same command again."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jobs
import numpy as np
import pytest
from conftest import SMALL

from core.checkpoints import Checkpoints
from experiments.restored import Restored

ROOT = pathlib.Path(__file__).parent.parent.parent


def start(csv_folder, cache, workdir):
    flags = [f"--config.{k}={v}" for k, v in SMALL.items()]
    command = [sys.executable, "-m", "launch.train", "--config=configs/lcr_ser_csv_log.py"]
    command += [f"--config.data_dir={csv_folder}", f"--config.cache_dir={cache}"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env=jobs.one_device(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def stop_in(process, workdir, stage, number):
    """Sends a signal once `stage` has saved its first checkpoint."""
    folder = workdir / "checkpoints" / stage
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if folder.is_dir() and any(p.name.isdigit() for p in folder.iterdir()):
            process.send_signal(number)
            break
        time.sleep(0.02)
    output = process.communicate(timeout=240)[0]
    return process.returncode, output


def states(workdir):
    """The newest state of every stage, and the results without what differs by time."""
    found = {}
    for stage in ("train", "rl", "control"):
        restored = Restored(str(workdir), stage)
        like = restored.experiment.abstract_state(stage)
        checkpoints = Checkpoints(str(workdir / "checkpoints" / stage))
        state, progress, step = checkpoints.restore(like)
        checkpoints.close()
        found[stage] = (state, progress, step)
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    return found, [{k: v for k, v in row.items() if k != "written"} for row in rows]


@pytest.mark.slow
def test_killed_in_both_stages_it_ends_in_the_same_bits(csv_folder, tmp_path):
    cache = tmp_path / "cache"
    whole = start(csv_folder, cache, tmp_path / "whole")
    output = whole.communicate(timeout=400)[0]
    assert whole.returncode == 0, output
    killed = tmp_path / "killed"
    for stage in ("train", "rl", "control"):
        code, output = stop_in(start(csv_folder, cache, killed), killed, stage, signal.SIGKILL)
        assert code == -signal.SIGKILL, output
    last = start(csv_folder, cache, killed)
    output = last.communicate(timeout=400)[0]
    assert last.returncode == 0, output
    (expected, expected_rows), (found, found_rows) = states(tmp_path / "whole"), states(killed)
    for stage, (state, progress, step) in expected.items():
        assert found[stage][1:] == (progress, step)
        for ours, theirs in zip(
            jax.tree.leaves(found[stage][0]), jax.tree.leaves(state), strict=True
        ):
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert found_rows == expected_rows


@pytest.mark.slow
def test_sigterm_saves_exits_with_0_and_says_so(csv_folder, tmp_path):
    workdir = tmp_path / "w"
    process = start(csv_folder, tmp_path / "cache", workdir)
    code, output = stop_in(process, workdir, "train", signal.SIGTERM)
    if "SIGTERM: saved step" not in output:
        pytest.fail(output)
    assert code == 0 and "the same command continues" in output
    assert os.listdir(workdir / "checkpoints" / "train")
