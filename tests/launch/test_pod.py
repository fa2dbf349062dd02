"""launch/pod.sh hands the training command to every worker, quoted; mistakes end with 2."""

import os
import pathlib
import subprocess

SCRIPT = pathlib.Path(__file__).parent.parent.parent / "launch" / "pod.sh"


def pod(tmp_path, *words):
    """The script with a gcloud that prints its arguments, one a line."""
    gcloud = tmp_path / "gcloud"
    gcloud.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n', encoding="utf-8")
    gcloud.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.run([SCRIPT, *words], env=environment, capture_output=True, text=True)


def test_every_worker_runs_the_same_command(tmp_path):
    done = pod(tmp_path, "slice", "us-x", "--config=configs/a.py", "--workdir=/mnt/a b")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:6] == ["compute", "tpus", "tpu-vm", "ssh", "slice", "--zone=us-x"]
    assert lines[6] == "--worker=all"
    # A virtual environment in the library's folder, where there is one, by the worker's own path.
    start = '--command=cd lcrsr && export PATH="$PWD/.venv/bin:$PATH" && exec python -m '
    assert lines[7].startswith(start + "launch.train --coordinator=auto ")
    # The mesh comes after the file whose value it changes, and before what the user says of it.
    assert lines[7].endswith(r"--config=configs/a.py --config.mesh.model=-1 --workdir=/mnt/a\ b")


def test_missing_words_end_with_2(tmp_path):
    for words in (("slice",), ("slice", "us-x", "--workdir=W")):
        done = pod(tmp_path, *words)
        assert done.returncode == 2 and done.stderr.startswith("error: expected")
        assert done.stdout == ""
