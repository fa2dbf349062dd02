"""GenSAR and the identifiers of all methods by two processes: killed, relaunched, as by one."""

import signal
import time

import jobs
import numpy as np
import pytest
from test_gensar import SMALL, write_beauty

from core.files import load_npz

pytestmark = pytest.mark.slow
OFTEN = {"loop.checkpoint_every": 2, "loop.log_every": 2}
QUANTIZER = {
    "vectors.width": 8,
    "vectors.sketch_width": 4,
    "model.widths": (16,),
    "model.latent_width": 4,
    "model.shared_levels": 1,
    "model.specific_levels": 2,
    "model.codes": 8,
    "train.epochs": 6,
    "train.evals": 2,
    "train.batch_size": 32,
    "train.kmeans_iterations": 3,
}
LEVELS = {
    "levels.levels": 2,
    "levels.codes": 48,
    "levels.batch_size": 8,
    "levels.first_updates": 2,
    "levels.updates": 4,
    "levels.evals": 1,
    **{key: SMALL[key] for key in ("vocabulary.pieces", "prompts.max_inputs", "model.size")},
    "prompts.max_targets": SMALL["prompts.max_targets"],
}
TWO = "--config.mesh.data=-1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_beauty(tmp_path_factory.mktemp("raw") / "beauty")


def flags_of(config, settings, folder, workdir):
    """Flags of a run that shares nothing with another, whose workdir has another parent."""
    given = settings | {"data_dir": folder, "cache_dir": workdir.parent / "cache"}
    flags = [f"--config.{key}={value}" for key, value in given.items()]
    return [f"--config=configs/{config}.py:amazon_beauty", f"--workdir={workdir}", *flags]


def kill_and_relaunch(flags, begun):
    """Kills the second of two processes once there is a folder; returns what the relaunch said."""
    job = jobs.together("train", *flags, TWO)
    if begun.name != "cache":
        jobs.await_checkpoint(begun, job)
    while not begun.exists() and all(process.poll() is None for process in job):
        time.sleep(0.01)
    job[1].send_signal(signal.SIGKILL)
    codes, outputs = jobs.endings(job)
    assert codes == [3, -signal.SIGKILL], outputs
    codes, outputs = jobs.endings(jobs.together("train", *flags, TWO))
    assert codes == [0, 0], outputs
    return outputs


def same_lines(together, alone):
    """Holds every number of a run's metrics.jsonl but means that a kill has moved to another's."""
    for ours, theirs in zip(jobs.lines_of(together), jobs.lines_of(alone), strict=True):
        assert ours == theirs
    assert jobs.lines_of(alone)


def same_rows(together, alone):
    expected, found = jobs.rows_of(alone), jobs.rows_of(together)
    assert found.keys() == expected.keys() and expected
    for key, row in found.items():
        timed = ("written",)
        assert {k: v for k, v in row.items() if k not in timed} == {
            k: v for k, v in expected[key].items() if k not in timed
        }


@pytest.mark.parametrize(
    ("config", "settings", "stage"),
    [
        ("gensar_identifiers", QUANTIZER | OFTEN, "identifiers"),
        ("genret_identifiers", LEVELS | OFTEN, "place_1"),
        ("genre_identifiers", {"vocabulary.pieces": SMALL["vocabulary.pieces"]}, None),
        ("p5_cid_identifiers", {"model.clusters": 3, "model.most_items": 10}, None),
        ("webultron_identifiers", {"model.parts": 4, "model.codes": 8}, None),
    ],
)
def test_identifiers_of_two_processes_are_those_of_one_in_the_same_bits(
    folder, tmp_path, config, settings, stage
):
    alone, together = tmp_path / "one" / "w", tmp_path / "two" / "w"
    jobs.finished(jobs.program("train", *flags_of(config, settings, folder, alone)))
    begun = together / "checkpoints" / stage if stage else together.parent / "cache"
    outputs = kill_and_relaunch(flags_of(config, settings, folder, together), begun)
    same_rows(together, alone)
    for name in ("identifiers.npz", *(["network.npz"] if "genret" in config else [])):
        arrays, expected = (
            load_npz(str(workdir / name), "arrays", "") for workdir in (together, alone)
        )
        assert arrays.keys() == expected.keys() and arrays
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, expected[key])
    if stage:
        assert f"{stage}: continues from the checkpoint of step 2" in outputs[0]
        same_lines(together, alone)
