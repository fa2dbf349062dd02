"""GenSAR and its identifiers by two processes: killed, relaunched, to the results of one."""

import signal
import time

import jobs
import numpy as np
import pytest
from test_gensar import SMALL, write_beauty
from test_gensar_identifiers import SMALL as QUANTIZER

from core.files import load_npz

pytestmark = pytest.mark.slow
OFTEN = {"loop.checkpoint_every": 2, "loop.log_every": 2}
LEVELS = {
    "levels.levels": 1,
    "levels.codes": 96,
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
        assert jobs.lines_of(together) == jobs.lines_of(alone) and jobs.lines_of(alone)


def test_two_processes_train_identifiers_then_end_as_one_on_two_devices(folder, tmp_path):
    settings = SMALL | OFTEN | {f"identifier_{key}": QUANTIZER[key] for key in QUANTIZER}
    settings |= {"eval.search_protocols": ()}
    alone, together = tmp_path / "one" / "w", tmp_path / "two" / "w"
    # More threads than the mesh has devices: on two cores, two would wait for each other.
    one = [*flags_of("gensar", settings, folder, alone), "--config.mesh.data=2"]
    jobs.finished(jobs.program("train", *one, devices=8))
    flags = flags_of("gensar", settings, folder, together)
    outputs = kill_and_relaunch(flags, together / "checkpoints" / "joint")
    assert "joint: continues from the checkpoint of step 2" in outputs[0]

    expected, found = jobs.rows_of(alone), jobs.rows_of(together)
    assert found.keys() == expected.keys() and expected
    for key, row in found.items():
        # Gradients are added up over devices in another order.
        assert row["metrics"] == pytest.approx(expected[key]["metrics"], abs=1e-5)
        assert row["identifiers"] == expected[key]["identifiers"]
    losses = [
        {line["step"]: line["train/loss"] for line in jobs.lines_of(w) if "train/loss" in line}
        for w in (alone, together)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and len(losses[0]) >= 2


def refused(job):
    """The lines in which both processes of a job end."""
    codes, outputs = jobs.endings(job)
    assert codes == [2, 2], outputs
    lines = [line for output in outputs for line in output.splitlines() if "error:" in line]
    assert len(lines) == 2, outputs
    return lines


def test_mistakes_that_process_0_finds_end_both_in_its_line(folder, tmp_path):
    # The one makes its pieces where it fits all else, the other before both train.
    for config, more in (("genre_identifiers", {}), ("genret_identifiers", LEVELS)):
        flags = flags_of(config, more | {"vocabulary.pieces": 5}, folder, tmp_path / "w")
        first, second = refused(jobs.together("train", *flags, TWO))
        assert "pieces" in first and first == second
        assert not (tmp_path / "w").exists()
    # The cache of process 1 is a disk of its own.
    settings = SMALL | {f"identifier_{key}": QUANTIZER[key] for key in QUANTIZER}
    flags = flags_of("gensar", settings, folder, tmp_path / "w")
    job = (*flags, TWO, f"--coordinator=127.0.0.1:{jobs.free_port()}", "--processes=2")
    caches = [f"--config.cache_dir={tmp_path / name}" for name in ("cache0", "cache1")]
    both = [jobs.program("train", *job, cache, f"--process={i}") for i, cache in enumerate(caches)]
    for said in refused(both):
        assert "expected all 2 processes to share the identifiers in" in said
        assert "process 1 without them; pass a --config.cache_dir that all hosts share" in said
