"""The command line: config files that do not load, and the flags of a job."""

import pathlib
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from configs import lcr_ser_defaults
from core.errors import UserError
from launch import cli
from launch.data import resolve

CONFIGS = pathlib.Path(__file__).parent.parent.parent / "configs"


@pytest.fixture
def parse(monkeypatch):
    def of(*words):
        values = flags.FlagValues()
        monkeypatch.setattr(flags, "FLAGS", values)
        # A file loaded before in this process would lend its get_config.
        monkeypatch.delitem(sys.modules, "config_config", raising=False)
        monkeypatch.setattr(sys, "argv", ["program", *words])
        config_flags.DEFINE_config_file("config", None, "A file.", flag_values=values)
        cli._parse()
        return values.config

    return of


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("datasets.py", r"with a get_config\(\), found one without; pass --config="),
        ("lcr_ser_qilin.py:foo", r"found a choice after its colon that the file does not take; l"),
        (
            "baseline.py:sasrec,amazon_kindle",
            r"^expected configs/baseline.py:METHOD,DATASET .* a data set of amazon_beauty, "
            r"amazon_raw, .*, found 'sasrec,amazon_kindle'; pass one that there is$",
        ),
        ("retrieval.py:bm25", r"^expected configs/retrieval.py:KIND,DATASET .*, found 'bm25'; "),
        ("no.py", "expected a config file, found none that loads"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--config.seed=1"]])
def test_a_config_file_that_does_not_load_is_told_in_one_line(parse, file, words, more):
    with pytest.raises(UserError, match=words):
        parse(f"--config={CONFIGS / file}", *more)


def test_keys_and_their_types(parse):
    file = f"--config={CONFIGS / 'lcr_ser_qilin.py'}"
    assert parse(file, "--config.seed=3").seed == 3
    with pytest.raises(UserError, match=r"a key of the config file, found .*'wings'"):
        parse(file, "--config.wings=3")
    with pytest.raises(UserError, match=r"known flags with fitting values, found: .*seed"):
        parse(file, "--config.seed=three")


def test_a_config_without_a_data_set_is_no_run():
    config = lcr_ser_defaults.get_config()
    for folder in ("", "/somewhere"):
        config.data_dir = folder
        with pytest.raises(UserError, match="names its data set, found none in it; pass --config="):
            resolve(config)


def job(monkeypatch, *given):
    """What a program with these flags runs as."""
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    for name in ("DEFINE_string", "DEFINE_integer"):
        define = getattr(flags, name)
        monkeypatch.setattr(
            flags, name, lambda *rest, define=define: define(*rest, flag_values=values)
        )
    cli.define_job_flags()
    values(["program", *given])
    ran = []
    cli.run_job(lambda: ran.append("alone"), lambda: ran.append("together"))
    return ran


@pytest.mark.parametrize(
    "given", [("--processes=4", "--process=1"), ("--processes=2",), ("--process=1",)]
)
def test_processes_are_not_numbered_without_a_coordinator(monkeypatch, given):
    with pytest.raises(UserError, match="expected --coordinator=HOST:PORT with --processes and "):
        job(monkeypatch, *given)


def test_one_process_needs_no_coordinator(monkeypatch):
    assert job(monkeypatch, "--processes=1", "--process=0") == ["alone"]
