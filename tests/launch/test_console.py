"""The command `lcrsr`: it finds its programs quickly, from any folder, and refuses in one line."""

import os
import pathlib
import subprocess
import sys

import pytest

from launch import console

ROOT = pathlib.Path(__file__).parent.parent.parent
COMMAND = "import sys; from launch.console import main; sys.orig_argv = ['python', 'lcrsr']; "


def lcrsr(folder, *words, more=""):
    """Runs `lcrsr` as its installed script does: the current folder is not searched for modules."""
    code = f"{COMMAND}sys.argv = ['lcrsr', *{words!r}]; main(){more}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_help_lists_every_program_with_a_sentence_and_imports_nothing_slow(tmp_path):
    slow = "('absl', 'numpy', 'jax', 'core', 'ml_collections')"
    done = lcrsr(tmp_path, "--help", more=f"; print([n for n in {slow} if n in sys.modules])")
    *lines, imported = done.stdout.splitlines()
    assert (done.returncode, imported) == (0, "[]")
    listed = [line.split()[0].replace("-", "_") for line in lines if line.startswith("  ")]
    files = {path.stem for path in (ROOT / "launch").glob("*.py")} - {"__init__", "console"}
    assert set(listed[1:]) == files and listed[1:3] == ["prepare_data", "train"]
    for name, text in console.programs().items():
        assert len(text) > 20 and text.endswith("."), name


def own_packages(folder):
    for name in ("core", "configs", "input_pipelines"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('not the library')\n")


@pytest.mark.parametrize("name", ["prepare-data", "prepare_data"])
def test_a_program_runs_in_a_folder_with_packages_of_the_same_names(tmp_path, name):
    own_packages(tmp_path)
    done = lcrsr(tmp_path, name, "--help")
    assert done.returncode == 0, done.stderr
    assert "    lcrsr prepare_data --dataset=" in done.stdout and "python -m" not in done.stdout
    done = lcrsr(tmp_path, "train", "--config=lcr_ser_qilin", "--config.seed=x")
    assert done.returncode == 2
    assert done.stderr.startswith("error: expected known flags with fitting values, found: ")


def test_no_such_program_is_one_line(tmp_path):
    done = lcrsr(tmp_path, "trian", "--config=x")
    line = "error: expected a program, found 'trian'; did you mean train? lcrsr --help lists them\n"
    assert (done.returncode, done.stderr) == (2, line)


def test_the_version_is_told(tmp_path):
    import lcrsr as library

    assert lcrsr(tmp_path, "--version").stdout == f"lcrsr {library.__version__}\n"


@pytest.mark.parametrize("kind", ["package", "file", "folder"])
def test_python_m_refuses_packages_of_others_in_one_line(tmp_path, kind):
    if kind == "package":
        own_packages(tmp_path)
    elif kind == "file":
        (tmp_path / "core.py").write_text("")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if kind == "folder":
        # One without __init__.py is only taken where no package of that name is found.
        (tmp_path / "core").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "launch.train", "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    if kind == "folder":
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 2
    assert done.stderr.startswith("error: expected the library's own package core beside ")
    assert done.stderr.count("\n") == 1
    assert f"found {tmp_path}/core" in done.stderr


def test_help_is_short_and_helpfull_is_not(tmp_path):
    short, full = lcrsr(tmp_path, "train", "--help"), lcrsr(tmp_path, "train", "--helpfull")
    assert short.returncode == full.returncode == 0
    assert len(short.stdout.splitlines()) < 25 and "lcrsr train --config=" in short.stdout
    assert "--verbosity" in full.stdout and "--verbosity" not in short.stdout
