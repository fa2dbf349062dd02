"""A run whose workdir, data and cache lie in an object store: moto's server speaks as S3 does."""

import json
import os
import pathlib
import signal
import sys
import time

import jax
import jobs
import numpy as np
import pytest
from test_store_server import server  # noqa: F401 - a fixture

from core.checkpoints import Checkpoints
from core.mirrors import copied_run
from core.object_store import FOLDER_VARIABLE, Store
from experiments.restored import Restored

pytestmark = pytest.mark.slow
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


@pytest.fixture
def s3(server, monkeypatch):  # noqa: F811
    """The environment that leads to the server, for programs and for this process."""
    for name, value in server[0].items():
        monkeypatch.setenv(name, value)
    return server[0]


def program(environment, machine, name, *flags):
    """A program on a machine of its own: it shares no file with another's, but the store."""
    variables = {"XLA_FLAGS": jobs.xla_flags(1), FOLDER_VARIABLE: str(machine)}
    command = [sys.executable, "-m", f"launch.{name}", *flags]
    every = jobs.one_device() | environment | variables | {"LCRSR_SNAPSHOT_S": "0.3"}
    return jobs.Process(command, every, cwd=jobs.ROOT)


def training(environment, machine, data, cache, workdir, **changes):
    flags = ["--config=configs/sasrec.py:csv_log", f"--config.data_dir={data}"]
    flags += [f"--config.cache_dir={cache}", f"--workdir={workdir}"]
    flags += [f"--config.{key}={value}" for key, value in (SMALL | changes).items()]
    return program(environment, machine, "train", *flags)


def saved_step(store):
    """The last checkpoint of a store's newest snapshot."""
    content = store.read("snapshot.json")
    names = json.loads(content)["files"] if content else []
    steps = [int(n.split("/")[2]) for n in names if n.startswith("checkpoints/train/")]
    return max(steps, default=0)


def await_step(store, process, step):
    deadline = time.monotonic() + 240
    while saved_step(store) < step:
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"expected step {step} in the store: {jobs.endings([process], 1)}")
        time.sleep(0.05)


def outcome(workdir):
    """The last state, what the run knows of it, and its rows without what differs by time."""
    restored = Restored(str(workdir), "train")
    checkpoints = Checkpoints(os.path.join(restored.workdir.path, "checkpoints", "train"))
    state, progress, step = checkpoints.restore(restored.experiment.abstract_state("train"))
    checkpoints.close()
    rows = restored.workdir.read_results()["rows"]
    rows = [{key: row[key] for key in row if key != "written"} for row in rows]
    lines = jobs.lines_of(pathlib.Path(restored.workdir.path))
    steps = [(line["stage"], line["step"]) for line in lines]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)], (progress, step, rows, steps)


def test_killed_on_one_machine_it_ends_on_another_in_the_same_bits(
    s3, csv_folder, tmp_path, monkeypatch
):
    whole, machine = tmp_path / "whole", [tmp_path / f"machine{number}" for number in range(3)]
    jobs.finished(training(s3, machine[2], csv_folder, tmp_path / "cache", whole))

    Store("s3://bucket/clicks", "").send(str(csv_folder), os.listdir(csv_folder))
    places = [f"s3://bucket/{name}" for name in ("clicks", "cache", "runs/one")]
    store = Store(places[2], "--workdir")
    first = training(s3, machine[0], *places)
    await_step(store, first, 5)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    killed_at = saved_step(store)
    assert store.read("lease.json") is not None

    second = training(s3, machine[1], *places)
    await_step(store, second, killed_at + 1)
    second.send_signal(signal.SIGTERM)
    (code,), (output,) = jobs.endings([second])
    assert code == 0 and f"continues from the checkpoint of step {killed_at}" in output, output
    assert "waiting up to 30 s to see whether the run on" in output
    assert "SIGTERM: saved step" in output

    output = jobs.finished(training(s3, machine[0], *places))
    assert "after training" in output and store.read("lease.json") is None

    monkeypatch.setenv(FOLDER_VARIABLE, str(machine[2]))
    (expected, *numbers), (state, *found) = outcome(whole), outcome(places[2])
    for ours, theirs in zip(state, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert found == numbers

    users, out = tmp_path / "users", tmp_path / "top.jsonl"
    users.write_text("u5\n", encoding="utf-8")
    flags = [f"--workdir={places[2]}", f"--users={users}", "--top_k=3", f"--out={out}"]
    jobs.finished(program(s3, machine[2], "predict", *flags))
    assert len(out.read_text(encoding="utf-8").splitlines()) == 3
    flags = [f"--workdir={places[2]}", "--protocols=full"]
    jobs.finished(program(s3, machine[2], "evaluate", *flags))
    rows = jobs.rows_of(pathlib.Path(copied_run(places[2])))
    assert {protocol for _, _, protocol in rows} == {"neg99", "full"}
    vectors = [tmp_path / "stored.npy", tmp_path / "whole.npy"]
    for workdir, out in zip((places[2], whole), vectors, strict=True):
        flags = [f"--workdir={workdir}", f"--out={out}"]
        jobs.finished(program(s3, machine[2], "export_vectors", *flags))
    assert vectors[0].read_bytes() == vectors[1].read_bytes()


def test_a_run_stops_that_another_machine_has_taken_its_lease_from(s3, csv_folder, tmp_path):
    place = "s3://bucket/runs/lost"
    store, endless = Store(place, "--workdir"), {"train.max_epochs": 1e6}
    run = training(s3, tmp_path / "machine", csv_folder, tmp_path / "cache", place, **endless)
    await_step(store, run, 5)
    deadline = time.monotonic() + 60
    while run.poll() is None and time.monotonic() < deadline:
        # Again: a renewal that was on its way has replaced it.
        store.write("lease.json", b'{"owner": "another", "token": "0"}')
        time.sleep(0.5)
    (code,), (output,) = jobs.endings([run], 1)
    assert code == 2 and "Traceback" not in output, output
    assert "no snapshot was saved" not in output
    last = output.splitlines()[-1]
    assert last.startswith(f"error: expected to keep the lease of {place} (--workdir), found it t")
    assert "the run on another, as one is that" in last


@pytest.mark.parametrize(
    ("workdir", "words"),
    [
        ("s3://nobody/run", "s3://nobody/run (--workdir), found The specified bucket does not"),
        ("zz://bucket/run", "--workdir on this machine or in an object store, found zz://bucket"),
    ],
)
def test_addresses_that_cannot_be_written(s3, csv_folder, tmp_path, workdir, words):
    process = training(s3, tmp_path / "machine", csv_folder, tmp_path / "cache", workdir)
    (code,), (output,) = jobs.endings([process])
    assert code == 2 and words in output and output.count("\n") == 1, output
    assert not (tmp_path / "cache").exists()
