"""The flags that programs share."""

import pytest
from absl import flags

from core.errors import UserError
from launch import cli


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
