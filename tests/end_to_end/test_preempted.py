"""SIGTERM outside a stage's loop: what is done stays, and the same command continues."""

import gc
import os
import pathlib
import signal
import subprocess
import sys
import time

import jobs
import numpy as np
import pytest

from configs import popularity
from core.errors import Preempted
from core.termination import watched
from core.workdir import open_workdir
from experiments.resolve import resolve
from experiments.train import train
from input_pipelines.dataset import Dataset
from lcrsr.baseline_experiment import FittedExperiment
from lcrsr.baselines.fitted import FittedEvaluator
from studies.ablation.ablate import ablate


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def unheard():
    """A signal that no program notes fails the test instead of ending the tests."""

    def fail(number, frame):
        raise AssertionError("expected SIGTERM to be noted, found it unheard")

    before = signal.signal(signal.SIGTERM, fail)
    yield
    signal.signal(signal.SIGTERM, before)


def row_before_sigterm(config, path):
    """The row of the one protocol that is tested before SIGTERM arrives, of equal scores."""
    data = Dataset(config)
    workdir = open_workdir(path, config.to_dict(), data.log.hash)

    class Equal:
        def scores(self, batch):
            if os.path.exists(workdir.file("results.json")):
                terminate()
                pytest.fail("expected the test to end at once")
            return np.zeros((len(batch["user"]), data.log.num_items + 1), np.float32)

    experiment = FittedExperiment(config, data)
    experiment.evaluator = FittedEvaluator(Equal(), tuple(config.eval.metrics))
    words = "SIGTERM in the test of stage fit against full: saved all"
    with pytest.raises(Preempted, match=words), watched():
        experiment.run(workdir)
    (row,) = workdir.read_results()["rows"]
    return row


def test_between_the_protocols_of_the_test_split(small_config, tmp_path):
    config = popularity.get_config()
    config.dataset, config.data = small_config.dataset, small_config.data
    config.data_dir, config.cache_dir = small_config.data_dir, small_config.cache_dir
    config.eval.protocols = ("neg99", "full")
    path = str(tmp_path / "w")
    row = row_before_sigterm(resolve(config), path)
    assert not (tmp_path / "w" / "summary.md").exists()
    gc.collect()  # the error may still hold the lock of the workdir
    rows = train(config, path)["rows"]
    assert [row["protocol"] for row in rows] == ["neg99", "full"]
    assert rows[0] == row, "what is saved is not computed again, by other scores"
    assert (tmp_path / "w" / "summary.md").exists()


def test_between_the_stages_of_a_sweep(small_config, tmp_path):
    def trained(arms):
        terminate()
        return {}

    with pytest.raises(Preempted, match="before stage train"):
        ablate(small_config, "lambda_tcl:0,0.5", str(tmp_path / "w"), train=trained)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="asks Linux what is imported")
@pytest.mark.parametrize(("number", "name", "code"), [(15, "SIGTERM", 0), (2, "Ctrl-C", 130)])
def test_while_a_program_still_imports(tmp_path, number, name, code):
    words = ["--config=configs/lcr_ser_qilin.py", f"--workdir={tmp_path / 'w'}"]
    command = [sys.executable, "-m", "launch.train", *words]
    process = subprocess.Popen(
        command, cwd=jobs.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        maps = pathlib.Path(f"/proc/{process.pid}/maps")
        while "jaxlib" not in maps.read_text():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        output, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code and output == ""
    assert error == (
        f"{name}: nothing was trained since the last checkpoint, if there is one; the same "
        "command begins or continues\n"
    )
    assert not (tmp_path / "w").exists()
