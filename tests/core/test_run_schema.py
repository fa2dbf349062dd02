"""Which version wrote a run, and the one line that refuses runs of another schema."""

import json
import pathlib
import re

import pytest

from core import run_schema
from core.errors import UserError
from core.version import VERSION
from core.workdir import Workdir, check_workdir, open_workdir


def test_a_run_says_which_version_wrote_it_and_is_read_without(tmp_path):
    workdir = open_workdir(str(tmp_path), {"seed": 0}, "h")
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == {
        "seed": 0,
        "written_by": {"schema": run_schema.SCHEMA, "version": VERSION},
    }
    assert workdir.read_config() == {"seed": 0}
    check_workdir(str(tmp_path), {"seed": 0})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, r"found one written by a version before 0\.2\.0; open it with that version, or train"),
        (
            {"written_by": {"schema": run_schema.SCHEMA + 1, "version": "9.8.7"}},
            rf"found one of schema {run_schema.SCHEMA + 1}, written by version 9\.8\.7; open it",
        ),
        (
            {"written_by": {"schema": 0, "version": "0.1.9"}},
            r"schema 0, written by version 0\.1\.9",
        ),
        *(
            ({"written_by": record}, r"as 'written_by' in it, found .*; restore the file, or train")
            for record in (
                None,
                7,
                {},
                {"schema": True, "version": "1"},
                {"schema": "1", "version": "1"},
                {"schema": 1, "version": None},
                {"schema": 2, "version": "1\n2"},
            )
        ),
    ],
    ids=str,
)
def test_a_run_of_another_schema_is_one_line_for_every_reader(tmp_path, changes, words):
    workdir = open_workdir(str(tmp_path / "w"), {"seed": 0}, "h")
    (tmp_path / "w" / "config.json").write_text(json.dumps({"seed": 0} | changes))
    for read in (
        workdir.read_config,
        workdir.read_results,
        lambda: workdir.read_setting("seed", int),
        lambda: check_workdir(workdir.path, {"seed": 0}),
        lambda: Workdir(workdir.path).write_result_row({}),
    ):
        with pytest.raises(UserError, match=words) as caught:
            read()
        assert str(tmp_path / "w" / "config.json") in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "w" / "results.json").exists()


def test_another_version_of_the_same_schema_goes_on(tmp_path):
    values = run_schema.stamped({"seed": 0})
    values["written_by"]["version"] = "0.2.7"
    assert run_schema.unstamped(values, "config.json") == {"seed": 0}


def test_the_version_is_that_of_the_citation():
    citation = pathlib.Path(__file__).parents[2] / "CITATION.cff"
    assert re.search(r"^version: (.+)$", citation.read_text(), re.M)[1] == VERSION
