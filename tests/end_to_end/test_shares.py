"""Sweeps that several processes share."""

import subprocess
import time

import pytest
from test_ablate import ROOT, command, environment, metrics_of

from core.errors import UserError
from core.workdir import Workdir
from studies.ablation.ablate import ablate


@pytest.mark.slow
def test_shares_train_their_arms_and_the_last_writes_the_table(csv_folder, tmp_path):
    cache, workdir = tmp_path / "cache", tmp_path / "w"

    def share(number):
        arguments = command(csv_folder, cache, workdir, f"--share={number}/2")
        return subprocess.Popen(
            arguments,
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    # At once, also at the preparation of the data. The first is killed in its arm.
    processes = [share(0), share(1)]
    own = workdir / "arms/lambda_TCL=0/seed0/checkpoints/train"
    deadline = time.monotonic() + 400
    while not (own.is_dir() and any(path.name.isdigit() for path in own.iterdir())):
        assert time.monotonic() < deadline and processes[0].poll() is None
        time.sleep(0.02)
    processes[0].kill()
    processes[0].communicate()
    output, error = processes[1].communicate(timeout=400)
    assert processes[1].returncode == 0, error
    assert "share 1/2 is through; 1 of 2 arms are other shares'" in output
    assert not (workdir / "table.md").exists()
    again = share(0)
    output, error = again.communicate(timeout=400)
    assert again.returncode == 0 and "continues from" in error, error
    table = (workdir / "table.md").read_text()
    assert output.strip() == table.strip() and table.count("after training") == 2
    whole = subprocess.run(
        command(csv_folder, cache, tmp_path / "whole"),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
    )
    assert whole.returncode == 0, whole.stderr
    for label in ("0", "0.5"):
        arm = f"arms/lambda_TCL={label}/seed0"
        assert metrics_of(workdir / arm) == metrics_of(tmp_path / "whole" / arm)


def test_shares_exclude_each_other_and_whoever_takes_all(tmp_path):
    def locked(share=None):
        workdir = Workdir(str(tmp_path))
        workdir.lock(share)
        return workdir

    held = [locked(0), locked(1)]
    for share in (0, 1, None):
        with pytest.raises(UserError, match="found another running process"):
            locked(share)
    del held
    whole = locked()
    with pytest.raises(UserError, match="found another running process"):
        locked(0)
    del whole


def test_what_cannot_be_shared(small_config, tmp_path):
    for share in ("2/2", "1", "a/2", "0/0", "-1/2"):
        with pytest.raises(UserError, match="expected --share=I/N with I from 0 to N - 1"):
            ablate(small_config, "k:0,1", str(tmp_path / "w"), share=share)
    with pytest.raises(UserError, match="found table4: it times; leave --share out"):
        ablate(small_config, "table4:0,1", str(tmp_path / "w"), share="0/2")
    assert not (tmp_path / "w").exists()
