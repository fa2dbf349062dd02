"""LCR-SER by launch.train on a log in one shard and in 64: the same bits."""

import jax
import numpy as np
import pytest
from test_resume import start, states

from input_pipelines import prepare


@pytest.mark.slow
def test_training_ends_in_the_same_bits_from_any_number_of_shards(
    csv_folder, tmp_path, monkeypatch
):
    # The second run loads what the first has compiled.
    monkeypatch.setenv("LCRSR_TEST_COMPILED", str(tmp_path / "compiled"))
    ends = []
    for shards in (1, 64):
        data = str(tmp_path / f"data-{shards}")
        options = {"segmenter": "characters"}
        prepare.prepare_into("csv_log", str(csv_folder), data, options, shards=shards)
        workdir = tmp_path / f"run-{shards}"
        run = start(data, tmp_path / "cache", workdir)
        output = run.communicate(timeout=280)[0]
        assert run.returncode == 0, output
        ends.append(states(workdir))
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").glob("csv_log*"))
    (one, rows), (other, other_rows) = ends
    assert rows == other_rows
    jax.tree.map(np.testing.assert_array_equal, one, other)
