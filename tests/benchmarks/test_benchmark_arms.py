"""The benchmark of arms: what is refused before anything is timed."""

import pytest
from absl import flags

from benchmarks import arms
from core import cli
from core.errors import UserError


def test_a_folder_that_is_a_file_or_has_files_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("precious")
    for folder, words in (
        (file, "expected a folder at .*file, found a file; pass another --folder"),
        (file / "below", "expected a folder at .*file, found a file; pass another --folder"),
        (tmp_path, "--folder=DIR of an empty folder"),
        ("", "--folder=DIR of an empty folder"),
    ):
        with pytest.raises(UserError, match=words):
            arms.empty_folder(str(folder))
    assert file.read_text() == "precious"


@pytest.mark.parametrize("wrong", ["--arms=0", "--steps=0", "--together=-1"])
def test_counts_that_are_too_small_are_refused_by_their_flag(wrong):
    values = flags.FlagValues()
    arms.define_flags(values)
    with pytest.raises(UserError, match=f"found: flag {wrong}: "):
        cli.parse(["program", "--folder=f", wrong], values)
