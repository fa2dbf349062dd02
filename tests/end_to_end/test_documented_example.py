"""The 20 rows that CONTRIBUTING shows train by the documented command."""

import json
import pathlib
import subprocess
import sys

import jobs
import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_the_documented_example_trains(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "launch.train", "--config=configs/lcr_ser_csv_log.py"),
            *("--config.data_dir=tests/data/csv_log", f"--workdir={tmp_path / 'run'}"),
            f"--config.cache_dir={tmp_path / 'cache'}",
            # As documented it is minutes of nothing new.
            *("--config.train.max_epochs=2", "--config.rl.examples=128"),
        ],
        cwd=ROOT,
        env=jobs.one_device(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    # So few items are ranked whole.
    assert {(row["stage"], row["protocol"]) for row in results["rows"]} == {
        (stage, "full") for stage in ("train", "rl", "control")
    }
