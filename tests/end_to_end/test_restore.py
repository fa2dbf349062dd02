"""Which stage a workdir is opened at."""

import shutil

import jax.numpy as jnp
import pytest

from core.checkpoints import Checkpoints
from core.errors import UserError
from core.loop import stage_directory
from core.workdir import open_workdir
from launch.data import resolve
from launch.restore import Restored, mesh_here


def save(workdir, stage, best_steps):
    """Checkpoints {step: best step until then}, as far as choosing a stage looks at them."""
    checkpoints = Checkpoints(stage_directory(workdir, stage))
    for step, best in best_steps.items():
        checkpoints.save(step, {"w": jnp.ones(2)}, {"step": step, "best_step": best}, best)
    checkpoints.close()


def test_rl_is_taken_once_it_has_been_evaluated(small_config, tmp_path, monkeypatch):
    workdir = open_workdir(str(tmp_path / "w"), resolve(small_config).to_dict())
    monkeypatch.setattr(Restored, "_restore", lambda self: None)

    def stage():
        return Restored(workdir.path).stage

    assert stage() == "rl", "without any, what is missing is named as before"
    save(workdir, "pretrain", {1: None, 2: 2})
    assert stage() == "pretrain"
    save(workdir, "rl", {})  # a run that begins with RL makes the folder
    assert (tmp_path / "w" / "checkpoints" / "rl").is_dir() and stage() == "pretrain"
    save(workdir, "rl", {1: None})
    assert stage() == "pretrain"
    save(workdir, "rl", {2: 2, 3: 2})
    assert stage() == "rl"
    shutil.rmtree(tmp_path / "w" / "checkpoints" / "rl" / "3" / "progress")
    assert stage() == "rl", "the one before is read, as restoring does"


def test_asked_for_a_stage_without_an_evaluation_it_says_so(small_config, tmp_path):
    workdir = open_workdir(str(tmp_path / "w"), resolve(small_config).to_dict())
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
