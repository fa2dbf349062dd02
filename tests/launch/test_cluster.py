"""launch/pod.yaml and launch/slurm.sh fill in to one training command; locks cover the images."""

import os
import pathlib
import re
import string
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "slurm.sh"
VALUES = {
    "IMAGE": "registry/lcrsr:tpu",
    "TOPOLOGY": "4x4",
    "HOSTS": "4",
    "CLAIM": "shared",
    "CONFIG": "configs/lcr_ser.py:csv_log",
}


def known_flags():
    """The names of launch.train's flags, those of every program of a job among them."""
    files = (ROOT / "launch" / "train.py", ROOT / "core" / "cli.py")
    return {name for file in files for name in re.findall(r'"([a-z_]+)"', file.read_text())}


def test_the_pod_runs_one_command_on_every_host():
    template = (ROOT / "launch" / "pod.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{(\w+)\}", template)) == set(VALUES)
    body = template.partition("apiVersion")
    jobset = yaml.safe_load(string.Template(body[1] + body[2]).substitute(VALUES))
    assert jobset["kind"] == "JobSet"
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    # Every host has a process, and one that fails ends its job, which JobSet starts again.
    assert spec["parallelism"] == spec["completions"] == 4 and spec["backoffLimit"] == 0
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "shared"
    (container,) = pod["containers"]
    assert container["image"] == "registry/lcrsr:tpu"
    assert container["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]
    command = container["command"]
    assert command[:3] == ["python", "-m", "launch.train"]
    assert "--config=configs/lcr_ser.py:csv_log" in command
    given = {word[2:].partition("=")[0] for word in command[3:]}
    assert {name for name in given if "." not in name} <= known_flags()
    # The mesh comes after the file whose value it changes.
    mesh, config = (next(i for i, w in enumerate(command) if w.startswith(f"--config{dot}"))
                    for dot in (".mesh", "="))  # fmt: skip
    assert mesh > config


def slurm(tmp_path, *words, **environment):
    """The script with an srun that prints its arguments, one a line, and its folder."""
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\npwd\nfor word in "$@"; do echo "$word"; done\n', encoding="utf-8")
    srun.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    names = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return subprocess.run(
        [SCRIPT, *words], env=names | path | environment, capture_output=True, text=True
    )


def test_every_task_runs_the_same_command(tmp_path):
    (tmp_path / "job").mkdir()
    done = slurm(
        tmp_path,
        *("--config=configs/a.py", "--workdir=/mnt/a b", "--config.mesh.model=2"),
        SLURM_JOB_ID="7",
        SLURM_SUBMIT_DIR=str(tmp_path / "job"),
    )
    assert done.returncode == 0, done.stderr
    folder, *command = done.stdout.splitlines()
    assert folder == str(tmp_path / "job")
    assert command == [
        *("--kill-on-bad-exit=1", "python", "-m", "launch.train", "--coordinator=auto"),
        *("--config=configs/a.py", "--config.mesh.model=-1", "--workdir=/mnt/a b"),
        "--config.mesh.model=2",
    ]


@pytest.mark.parametrize(
    ("words", "environment", "found"),
    [
        ((), {}, "expected --config=FILE .*, found nothing"),
        (("--workdir=W",), {}, "expected --config=FILE .*, found --workdir=W"),
        (("--config=C",), {}, "expected --workdir=DIR, .* found none"),
        (("--config=C", "--workdir=W"), {}, "expected a job of SLURM, found none; submit it"),
    ],
)
def test_mistakes_end_with_2_and_one_line(tmp_path, words, environment, found):
    done = slurm(tmp_path, *words, **environment)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert re.search(found, line) and line.startswith("error: ")


@pytest.mark.parametrize(
    ("device", "wheels"),
    [("cpu", ()), ("cuda", ("jax-cuda12-plugin", "jax-cuda12-pjrt")), ("tpu", ("libtpu",))],
)
def test_every_package_of_an_image_is_pinned_and_hashed(device, wheels):
    lock = (ROOT / "requirements" / f"image-{device}.txt").read_text(encoding="utf-8")
    lines = [line for line in lock.splitlines() if line and not line.lstrip().startswith("#")]
    pins = [line for line in lines if not line.startswith(" ")]
    assert len(pins) > 50 and all(re.match(r"[\w.\-]+(\[\w+\])?==\S+ (; .* )?\\$", p) for p in pins)
    hashes = [line for line in lines if line.startswith(" ")]
    assert all(re.fullmatch(r" {4}--hash=sha256:[0-9a-f]{64}( \\)?", h) for h in hashes)
    names = {pin.partition("==")[0] for pin in pins}
    assert {"jax", "jaxlib", "setuptools", "uvicorn", *wheels} <= names
    # What is tested is what the images hold.
    tested = (ROOT / "requirements" / "linux-x86_64-py311.txt").read_text(encoding="utf-8")
    assert {p for p in pins if p.startswith(("jax==", "flax==", "orbax", "numpy=="))} <= set(
        tested.splitlines()
    )


def test_the_image_is_built_from_its_lock():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert '--require-hashes -r "requirements/image-$DEVICE.txt"' in text
    assert "--no-deps" in text and "STOPSIGNAL SIGTERM" in text
