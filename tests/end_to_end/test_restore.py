"""Which stage a workdir is opened at."""

import json
import os
import resource
import shutil

import jax.numpy as jnp
import pytest
from ml_collections import config_dict

from configs import popularity
from core.checkpoints import Checkpoints
from core.errors import UserError
from core.loop import stage_directory
from core.workdir import open_workdir
from experiments.evaluate import evaluate
from experiments.resolve import resolve
from experiments.restored import Restored, mesh_here, stage_to_open
from experiments.train import train
from input_pipelines.dataset import Dataset
from lcrsr.experiment import LCRSERExperiment
from studies.adaptive import adapt
from studies.compare import read_rows
from studies.report import report


def opened(folder, config):
    config = resolve(config)
    return open_workdir(str(folder / "w"), config.to_dict(), Dataset(config).log.hash)


def save(workdir, stage, best_steps):
    """Checkpoints {step: best step until then}, as far as choosing a stage looks at them."""
    checkpoints = Checkpoints(stage_directory(workdir, stage))
    for step, best in best_steps.items():
        checkpoints.save(step, {"w": jnp.ones(2)}, {"step": step, "best_step": best}, best)
    checkpoints.close()


def test_rl_is_taken_once_it_has_been_evaluated(small_config, tmp_path):
    workdir = opened(tmp_path, small_config)

    def stage():
        return stage_to_open(workdir, LCRSERExperiment.stages)

    assert stage() == "rl", "without any, what is missing is named as before"
    save(workdir, "train", {1: None, 2: 2})
    assert stage() == "train"
    save(workdir, "rl", {})  # a run that begins with RL makes the folder
    assert (tmp_path / "w" / "checkpoints" / "rl").is_dir() and stage() == "train"
    save(workdir, "rl", {1: None})
    assert stage() == "train"
    save(workdir, "rl", {2: 2, 3: 2})
    assert stage() == "rl"
    shutil.rmtree(tmp_path / "w" / "checkpoints" / "rl" / "3" / "progress")
    assert stage() == "rl", "the one before is read, as restoring does"


def test_asked_for_a_stage_without_an_evaluation_it_says_so(small_config, tmp_path):
    workdir = opened(tmp_path, small_config)
    with pytest.raises(UserError, match="expected checkpoints of stage control"):
        Restored(workdir.path, "control")
    assert not (tmp_path / "w" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("trained", "devices", "expected"),
    [
        ((1, 1), 8, (1, 1)),
        ((2, 4), 8, (2, 4)),
        ((2, 4), 6, (1, 1)),
        ((-1, 1), 3, (2, 1)),
        ((1, -1), 12, (1, 8)),
        ((2, -1), 12, (2, 4)),
        ((-1, 4), 2, (1, 1)),
    ],
)
def test_a_run_opens_on_other_numbers_of_devices(trained, devices, expected):
    assert tuple(mesh_here(*trained, devices).values()) == expected


@pytest.fixture(scope="module")
def fitted(small_config, tmp_path_factory):
    config = popularity.get_config()
    config.dataset, config.data, config.data_dir = (
        small_config.dataset,
        small_config.data,
        small_config.data_dir,
    )
    config.cache_dir = small_config.cache_dir
    config.eval.protocols = ("neg99",)
    path = tmp_path_factory.mktemp("fitted") / "w"
    train(config, str(path))
    return path


def changes(config, place=()):
    """Every way to take a setting away, or to give it another kind of value."""
    for key, value in config.items():
        yield (*place, key), None
        for other in ("x", 1.5, [], {}, None, True):
            if type(other) is not type(value):
                yield (*place, key), [other]
        if isinstance(value, dict):
            yield from changes(value, (*place, key))


def test_a_config_that_has_been_changed_is_one_line_or_works(fitted, tmp_path):
    whole = json.loads((fitted / "config.json").read_text())
    shutil.copytree(fitted, tmp_path / "w")
    refused = 0
    for place, new in changes(whole):
        config = json.loads(json.dumps(whole))
        section = config
        for key in place[:-1]:
            section = section[key]
        if new is None:
            del section[place[-1]]
        else:
            (section[place[-1]],) = new
        (tmp_path / "w" / "config.json").write_text(json.dumps(config))
        try:
            Restored(str(tmp_path / "w"))
        except UserError:
            refused += 1
    assert refused > 50


def test_a_run_of_another_schema_is_one_line_for_every_program(fitted, tmp_path):
    folder = tmp_path / "w"
    shutil.copytree(fitted, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["written_by"]
    values = config_dict.ConfigDict(config)
    for record, words in (
        ({"schema": 9, "version": "9.9.9"}, r"found one of schema 9, written by version 9\.9\.9; "),
        (None, r"found one written by a version before 0\.2\.0; open it with that version"),
    ):
        written = config | ({"written_by": record} if record else {})
        (folder / "config.json").write_text(json.dumps(written))
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for program in (
            lambda: train(values, str(folder)),
            lambda: Restored(str(folder)),  # of launch.evaluate, predict and export_vectors
            lambda: adapt(str(folder), None, "ndcg@5", 0.0),
            lambda: read_rows([str(folder)], "ndcg@5/neg99", "test"),
            lambda: report([str(folder)]),
        ):
            with pytest.raises(UserError, match=words) as caught:
                program()
            assert "\n" not in str(caught.value)
        after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert after == before


def test_a_full_disk_in_evaluate_is_one_line_and_loses_nothing(fitted, tmp_path):
    shutil.copytree(fitted, tmp_path / "w")
    run = Restored(str(tmp_path / "w"))
    before = (tmp_path / "w" / "results.json").read_bytes()
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(UserError, match=r"expected to write .*\.npz, found File too large; "):
            evaluate(run, "validation", "neg99")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert (tmp_path / "w" / "results.json").read_bytes() == before
    names = [name for _, _, names in os.walk(tmp_path / "w") for name in names]
    assert not any(name.startswith(".partial") for name in names)
    evaluate(run, "validation", "neg99")
    assert len(run.workdir.read_results()["rows"]) == 2
