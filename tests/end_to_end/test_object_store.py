"""Data, cache and workdir in an object store: moto's server on this machine speaks as S3 does."""

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

from core import stores
from core.checkpoints import Checkpoints
from core.mirrors import copied_run
from experiments.restored import Restored

SMALL = {
    "data.rec_length": 6,
    "model.width": 8,
    "train.batch_size": 32,
    "train.max_epochs": 12.0,
    "train.stop_patience": 1000,
    "eval.batch_size": 32,
    "eval.full_batch_size": 16,
    "eval.protocols": ("neg99",),
    "loop.log_every": 4,
    "loop.checkpoint_every": 5,
}


@pytest.fixture(scope="module")
def s3():
    """Starts a server with the bucket `runs`; yields the environment that leads to it."""
    for package in ("moto", "s3fs"):
        pytest.importorskip(package, reason=f"{package} speaks S3: pip install -e '.[store,test]'")
    import boto3

    port = jobs.free_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "user",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            client = boto3.client("s3")
            deadline = time.monotonic() + 60
            while True:
                try:
                    client.create_bucket(Bucket="runs")
                    break
                except Exception:
                    assert server.poll() is None and time.monotonic() < deadline
                    time.sleep(0.2)
            yield environment
    finally:
        server.kill()
        server.wait()


def program(name, *flags, machine):
    """A program on a machine of its own: it shares no file with another's, but the store."""
    environment = jobs.one_device() | {
        "XLA_FLAGS": jobs.xla_flags(1),
        stores.STORES_VARIABLE: str(machine),
        "LCRSR_SNAPSHOT_S": "0.3",
    }
    return jobs.Process(
        [sys.executable, "-m", f"launch.{name}", *flags], environment, cwd=jobs.ROOT
    )


def training(data, cache, workdir, machine):
    flags = ["--config=configs/sasrec.py:csv_log", f"--config.data_dir={data}"]
    flags += [f"--config.cache_dir={cache}", f"--workdir={workdir}"]
    flags += [f"--config.{key}={value}" for key, value in SMALL.items()]
    return program("train", *flags, machine=machine)


def saved_steps(store):
    """The steps of the checkpoints in a store's newest snapshot."""
    content = store.read("snapshot.json")
    names = json.loads(content)["files"] if content else []
    return {int(n.split("/")[2]) for n in names if n.startswith("checkpoints/train/")}


def await_step(store, process, step):
    deadline = time.monotonic() + 240
    while max(saved_steps(store), default=0) < step:
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"expected step {step} in the store: {jobs.endings([process], 1)}")
        time.sleep(0.05)


def state_of(workdir):
    """The newest state of a run, and its rows without what differs by time."""
    restored = Restored(str(workdir), "train")
    checkpoints = Checkpoints(os.path.join(restored.workdir.path, "checkpoints", "train"))
    state, progress, step = checkpoints.restore(restored.experiment.abstract_state("train"))
    checkpoints.close()
    rows = restored.workdir.read_results()["rows"]
    rows = [{k: v for k, v in row.items() if k != "written"} for row in rows]
    return state, (progress, step), rows


@pytest.mark.slow
def test_killed_on_one_machine_it_ends_on_another_in_the_same_bits(
    s3, csv_folder, tmp_path, monkeypatch
):
    whole = tmp_path / "whole"
    jobs.finished(training(csv_folder, tmp_path / "cache", whole, tmp_path / "none"))

    raw = stores.Store("s3://runs/raw", "--raw_dir")
    raw.put([(str(path), path.name) for path in csv_folder.iterdir()])
    machine = [tmp_path / "machine0", tmp_path / "machine1"]
    place = ("s3://runs/raw", "s3://runs/cache", "s3://runs/one")
    store = stores.Store(place[2], "--workdir")
    first = training(*place, machine[0])
    await_step(store, first, 5)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    killed_at = max(saved_steps(store))

    # While the other machine waits for the lease, nobody writes.
    second = training(*place, machine[1])
    await_step(store, second, killed_at + 1)
    second.send_signal(signal.SIGTERM)
    (code,), (output,) = jobs.endings([second])
    assert code == 0 and f"continues from the checkpoint of step {killed_at}" in output, output
    assert "SIGTERM: saved step" in output
    shared = stores.Store(place[1], "config.cache_dir").objects()
    assert len([name for name in shared if name.endswith("/meta.json")]) == 1

    output = jobs.finished(training(*place, machine[0]))
    assert "after training" in output
    assert "lease.json" not in store.objects()

    monkeypatch.setenv(stores.STORES_VARIABLE, str(tmp_path / "reader"))
    (expected, *numbers), (state, *found) = state_of(whole), state_of(place[2])
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert found == numbers
    metrics = [jobs.lines_of(w) for w in (whole, pathlib.Path(copied_run(place[2])))]
    assert [(m["stage"], m["step"]) for m in metrics[0]] == [
        (m["stage"], m["step"]) for m in metrics[1]
    ]

    users, out = tmp_path / "users", tmp_path / "top.jsonl"
    users.write_text("u5\n", encoding="utf-8")
    flags = (f"--workdir={place[2]}", f"--users={users}", "--top_k=3", f"--out={out}")
    jobs.finished(program("predict", *flags, machine=tmp_path / "third"))
    assert len(out.read_text(encoding="utf-8").splitlines()) == 3
    flags = (f"--workdir={place[2]}", "--protocols=full")
    jobs.finished(program("evaluate", *flags, machine=tmp_path / "third"))
    kept = pathlib.Path(copied_run(place[2]))
    assert {protocol for _, _, protocol in jobs.rows_of(kept)} == {"neg99", "full"}


@pytest.mark.slow
def test_prepared_from_and_to_the_store(s3, csv_folder, tmp_path):
    raw = stores.Store("s3://runs/raw", "--raw_dir")
    raw.put([(str(path), path.name) for path in csv_folder.iterdir()])
    flags = ("--dataset=csv_log", "--raw_dir=s3://runs/raw", "--data_dir=s3://runs/log")
    card = json.loads(jobs.finished(program("prepare_data", *flags, machine=tmp_path / "a"))[:-1])
    assert "meta.json" in stores.Store("s3://runs/log", "").objects()
    flags = ("--validate", "--data_dir=s3://runs/log")
    again = json.loads(jobs.finished(program("prepare_data", *flags, machine=tmp_path / "b"))[:-1])
    assert again["hash"] == card["hash"]


@pytest.mark.parametrize(
    ("workdir", "words"),
    [
        (
            "s3://nobody/run",
            "--workdir=s3://nobody/run, found no such bucket or object; correct it",
        ),
        ("gss://runs/run", "expected an address such as gs://"),
    ],
)
def test_addresses_that_cannot_be_written(s3, csv_folder, tmp_path, workdir, words):
    process = training(csv_folder, tmp_path / "cache", workdir, tmp_path / "a")
    (code,), (output,) = jobs.endings([process])
    assert code == 2 and words in output and "Traceback" not in output
    assert output.count("\n") == 1, output
    assert not (tmp_path / "cache").exists()
