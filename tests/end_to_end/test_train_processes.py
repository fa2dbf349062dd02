"""launch.train itself with two processes: killed in RL, relaunched, to the results of one."""

import json
import re
import signal

import conftest
import jobs
import numpy as np
import pytest
from jobs import await_checkpoint, finished, lines_of, program, rows_of

SMALL = conftest.SMALL | {
    "on_sample.users": 80,
    "train.max_epochs": 1.0,
    "rl.examples": 192,
    # So small a model hardly ever ranks a target first.
    "rl.reward": "ndcg@5",
    "loop.log_every": 2,
    "loop.checkpoint_every": 2,
}


def flags_of(tmp_path, workdir):
    given = ["--config=configs/lcr_ser_qilin.py", f"--config.cache_dir={tmp_path / 'cache'}"]
    given += [f"--config.{key}={value}" for key, value in SMALL.items()]
    return [*given, f"--workdir={workdir}"]


def numbers(line, statistics):
    """A line's numbers; means since the last look, which a kill moves, where `statistics`."""
    left = {key: value for key, value in line.items() if key != "stage"}
    return {key: left[key] for key in left if statistics or not key.startswith("train/")}


@pytest.mark.slow
def test_two_processes_killed_in_rl_and_relaunched_end_as_one(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    # More threads than the mesh has devices: on two cores, two would wait for each other.
    two = "--config.mesh.model=2"
    finished(program("train", *flags_of(tmp_path, alone), two, devices=8))

    both = [*flags_of(tmp_path, together), "--config.mesh.model=-1"]
    job = jobs.together("train", *both)
    await_checkpoint(together / "checkpoints" / "rl", job)
    job[1].send_signal(signal.SIGKILL)
    codes, outputs = jobs.endings(job)
    assert codes == [3, -signal.SIGKILL], outputs
    assert "error: expected process 1 of 2 to go on" in outputs[0]
    codes, outputs = jobs.endings(jobs.together("train", *both))
    assert codes == [0, 0], outputs
    assert re.search(r"rl: continues from the checkpoint of step \d+\b", outputs[0]), outputs[0]
    assert "after RL" in outputs[0] and "after RL" not in outputs[1]

    expected, found = lines_of(alone), lines_of(together)
    assert [(line["stage"], line["step"]) for line in found] == [
        (line["stage"], line["step"]) for line in expected
    ]
    for ours, theirs in zip(found, expected, strict=True):
        whole = ours["stage"] != "rl"
        assert numbers(ours, whole) == pytest.approx(numbers(theirs, whole), rel=1e-5)
    expected_rows, found_rows = rows_of(alone), rows_of(together)
    assert len(expected_rows) == 6 and found_rows.keys() == expected_rows.keys()
    for key, row in found_rows.items():
        theirs = expected_rows[key]
        assert row["metrics"] == pytest.approx(theirs["metrics"], rel=1e-5)
        assert row["step"] == theirs["step"] and row["examples"] == theirs["examples"]
        with np.load(together / row["per_user"]) as a, np.load(alone / row["per_user"]) as b:
            assert set(a) == set(b)
            for name in a:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-7)
    assert "after RL" in (together / "summary.md").read_text(encoding="utf-8")
    assert (together / "curves.png").stat().st_size > 10_000

    # One process on one device reads what two wrote.
    output = finished(program("evaluate", f"--workdir={together}", "--stage=rl"))
    assert "after RL" in output
    for key, row in rows_of(together).items():
        assert row["metrics"] == pytest.approx(expected_rows[key]["metrics"], rel=1e-5)
    users, out = tmp_path / "users", tmp_path / "top.jsonl"
    users.write_text("1\n2\n", encoding="utf-8")
    flags = (f"--workdir={together}", f"--users={users}", "--top_k=5", f"--out={out}")
    finished(program("predict", *flags))
    best = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(row["user"], row["rank"]) for row in best] == [
        (user, rank) for user in ("1", "2") for rank in range(1, 6)
    ]
