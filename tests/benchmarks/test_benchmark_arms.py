"""The benchmark of arms: what is refused before anything is timed."""

import functools
import sys
import types

import pytest
from absl import flags
from ml_collections import config_flags

from benchmarks import arms
from core import cli
from core.errors import UserError


def test_a_folder_that_is_a_file_or_has_files_is_refused_before_anything_is_timed(
    tmp_path, monkeypatch
):
    file = tmp_path / "file"
    file.write_text("precious")
    for folder, words in (
        (file, "expected a folder at .*file, found a file; pass another --folder"),
        (file / "below", "expected a folder at .*file, found a file; pass another --folder"),
        (tmp_path, "--folder=DIR of an empty folder"),
        ("", "--folder=DIR of an empty folder"),
    ):
        given = types.SimpleNamespace(folder=str(folder))
        monkeypatch.setattr(arms.flags, "FLAGS", given)
        with pytest.raises(UserError, match=words):
            arms.main()
    assert file.read_text() == "precious"


@pytest.mark.parametrize("wrong", ["--arms=0", "--steps=0", "--together=-1"])
def test_counts_that_are_too_small_are_refused_by_their_flag(monkeypatch, wrong):
    values = flags.FlagValues()
    for name in ("DEFINE_string", "DEFINE_integer"):
        define = functools.partial(getattr(flags, name), flag_values=values)
        monkeypatch.setattr(flags, name, define)
    monkeypatch.setattr(config_flags, "DEFINE_config_file", lambda *_: None)
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setattr(sys, "argv", ["program", "--folder=f", wrong])
    arms.define_flags()
    with pytest.raises(UserError, match=f"found: flag {wrong}: "):
        cli._parse()
