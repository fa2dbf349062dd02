"""Where a workdir lies, and places where none can."""

import os

import pytest

from core.errors import UserError
from core.workdir import Workdir, check_workdir, open_workdir


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    check_workdir("~/w", {"seed": 0})
    workdir = open_workdir("~/w", {"seed": 0})
    assert workdir.path == str(tmp_path / "w")
    assert os.listdir(tmp_path) == ["w"]
    assert Workdir("~/w").read_config() == {"seed": 0}


def test_a_folder_that_cannot_be_made_is_the_users_mistake():
    with pytest.raises(UserError, match=r"to make the folder /proc/none/w, found .*; free"):
        open_workdir("/proc/none/w", {})


def test_a_workdir_that_cannot_be_written_is_the_users_mistake(tmp_path):
    (tmp_path / ".lock").mkdir()  # as root, all else can be written
    with pytest.raises(UserError, match=f"expected to write in {tmp_path}, found Is a directory;"):
        open_workdir(str(tmp_path), {})
