"""CRS by two processes: killed in its RL and relaunched, to the results of one."""

import json
import signal

import jobs
import numpy as np
import pytest
from test_crs import SMALL, opened, write_beauty

from core.errors import UserError
from crs_jax.examples import check_alike


def flags_of(tmp_path, workdir, **changes):
    given = {**SMALL, "data_dir": tmp_path / "beauty", "cache_dir": tmp_path / "cache"}
    flags = [f"--config.{key}={value}" for key, value in {**given, **changes}.items()]
    return ["--config=configs/crs_amazon_beauty.py", f"--workdir={workdir}", *flags]


def subsets_of(workdir):
    return {path.name: path.read_text() for path in (workdir / "subsets").iterdir()}


@pytest.mark.slow
def test_two_processes_killed_in_rl_and_relaunched_end_as_one(tmp_path):
    write_beauty(tmp_path / "beauty")
    alone, together = tmp_path / "alone", tmp_path / "together"
    mesh = {"mesh.data": 2}
    # More threads than the mesh has devices: on two cores, two would wait for each other.
    jobs.finished(jobs.program("train", *flags_of(tmp_path, alone, **mesh), devices=8))

    flags = flags_of(tmp_path, together, **mesh)
    job = jobs.together("train", *flags)
    jobs.await_checkpoint(together / "checkpoints" / "rl_0", job)
    job[1].send_signal(signal.SIGKILL)
    codes, outputs = jobs.endings(job)
    assert codes == [3, -signal.SIGKILL], outputs
    codes, outputs = jobs.endings(jobs.together("train", *flags))
    assert codes == [0, 0], outputs
    assert "rl_0: continues from the checkpoint of step" in outputs[0]
    assert not [line for line in outputs[0].splitlines() if "align step" in line]

    assert subsets_of(together) == subsets_of(alone)
    expected, found = jobs.rows_of(alone), jobs.rows_of(together)
    assert found.keys() == expected.keys() and len(expected) == 4
    for key, row in found.items():
        assert row["metrics"] == pytest.approx(expected[key]["metrics"], rel=1e-5)
        assert (row["step"], row["subset"]) == (expected[key]["step"], expected[key]["subset"])
        with np.load(together / row["per_user"]) as a, np.load(alone / row["per_user"]) as b:
            for name in a:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-7)
    assert (together / "tokenizer.json").read_text() == (alone / "tokenizer.json").read_text()

    # One process on one device reads what two wrote.
    users, out = tmp_path / "users", tmp_path / "top.jsonl"
    users.write_text("1\n2\tkind3 things\n", encoding="utf-8")
    asked = (f"--workdir={together}", f"--users={users}", "--top_k=3", f"--out={out}")
    jobs.finished(jobs.program("predict", *asked))
    best = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(row["user"], row["rank"]) for row in best] == [
        (user, rank) for user in ("1", "2") for rank in (1, 2, 3)
    ]


def test_processes_with_other_tokenizers_are_told(tmp_path):
    one = opened(write_beauty(tmp_path / "beauty"), tmp_path).examples.identity()
    check_alike([one, one])
    with pytest.raises(UserError, match=r"and tokenizer on all processes, found others on \[2\]"):
        check_alike([one, one, [*one[:3], "other"]])
