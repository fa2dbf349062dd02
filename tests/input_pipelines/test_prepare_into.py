"""Preparing into a folder of the user's: whole or absent, checked, used by training as it is."""

import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import kuaisar_files
import numpy as np
import pytest

from core import checksums
from core.errors import UserError
from input_pipelines import prepare
from input_pipelines.prepared_log import save_log

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLE = pathlib.Path(__file__).parents[1] / "data" / "csv_log"
OPTIONS = {"segmenter": "characters"}


@pytest.fixture
def raw(tmp_path):
    return str(shutil.copytree(EXAMPLE, tmp_path / "raw"))


@pytest.fixture
def target(tmp_path):
    return str(tmp_path / "prepared" / "mine")


def test_the_second_call_opens_what_the_first_left(raw, target):
    said = []
    log = prepare.prepare_into("csv_log", raw, target, OPTIONS, lambda *a: said.append(a))
    assert [what for what, _ in said] == ["reading", "checking", "saving", "saving"]
    before = os.stat(os.path.join(target, "meta.json")).st_mtime_ns
    again = prepare.prepare_into("csv_log", raw, f"{target}/", OPTIONS, lambda *a: said.append(a))
    assert again.hash == log.hash and len(said) == 4
    assert os.stat(os.path.join(target, "meta.json")).st_mtime_ns == before
    assert os.listdir(os.path.dirname(target)) == ["mine"]


def test_an_empty_folder_may_stand_there_and_nothing_else(raw, target):
    os.makedirs(target)
    prepare.prepare_into("csv_log", raw, target, OPTIONS)
    with open(os.path.join(raw, "clicks.csv"), "a", encoding="utf-8") as file:
        file.write("zoe,mug,900\n")
    with pytest.raises(UserError, match="prepared from other files or settings"):
        prepare.prepare_into("csv_log", raw, target, OPTIONS)
    with pytest.raises(UserError, match="something else than a prepared log"):
        prepare.prepare_into("csv_log", raw, raw, OPTIONS)
    with pytest.raises(UserError, match="something else than a prepared log"):
        prepare.prepare_into("csv_log", raw, os.path.join(raw, "items.csv"), OPTIONS)


def test_training_uses_a_prepared_folder_as_it_is(raw, target, tmp_path):
    log = prepare.prepare_into("csv_log", raw, target, OPTIONS)
    shutil.rmtree(raw)
    cache = str(tmp_path / "cache")
    opened, directory = prepare.prepare_log("csv_log", target, cache, OPTIONS)
    assert (opened.hash, directory) == (log.hash, target) and not os.path.exists(cache)
    with pytest.raises(UserError, match="with dataset qilin, found csv_log"):
        prepare.prepare_log("qilin", target, cache, OPTIONS)
    with pytest.raises(UserError, match=r"'jieba'\}, found \{'segmenter': 'characters'\}"):
        prepare.prepare_log("csv_log", target, cache, {"segmenter": "jieba"})


def test_a_folder_of_another_version_of_the_reader_is_refused(raw, target, monkeypatch):
    prepare.prepare_into("csv_log", raw, target, OPTIONS)
    newer = dataclasses.replace(prepare.READERS["csv_log"], version=99)
    monkeypatch.setitem(prepare.READERS, "csv_log", newer)
    with pytest.raises(UserError, match="by version 99 of csv_log's reader, found 3; prepare it"):
        prepare.prepare_log("csv_log", target, "unused", OPTIONS)


def test_validating_finds_a_changed_number(raw, target):
    log = prepare.prepare_into("csv_log", raw, target, OPTIONS)
    assert prepare.validate_prepared(target).hash == log.hash
    path = os.path.join(target, "rec_times.npy")
    times = np.load(path)
    times[-1] += 1  # still in order, still as long
    np.save(path, times)
    with pytest.raises(UserError, match=r"rec_times.npy, found .*: its content has changed since"):
        prepare.validate_prepared(target)
    # One that belongs to its checksum is not the log's yet.
    meta = checksums.read_sealed(os.path.join(target, "meta.json"), "", "")
    meta["files"] |= checksums.describe(target, ["rec_times.npy"])
    checksums.write_sealed(os.path.join(target, "meta.json"), meta)
    with pytest.raises(UserError, match=f"expected the content hash {log.hash} of .*, found "):
        prepare.validate_prepared(target)
    with pytest.raises(UserError, match=r"a prepared log with meta\.json in .*; pass a folder"):
        prepare.validate_prepared(raw)


def test_what_a_killed_save_left_is_removed_and_what_a_living_one_holds_is_not(raw, target):
    log = prepare.READERS["csv_log"].read(raw, **OPTIONS)
    parent = pathlib.Path(target).parent
    for name in (".partial-mine-dead", ".partial-mine-living", ".partial-other-x"):
        (parent / name).mkdir(parents=True)
        (parent / name / "words.npy").write_bytes(b"half")
    code = "import fcntl, os, sys\nfd = os.open(sys.argv[1], os.O_RDONLY)\n"
    code += "fcntl.flock(fd, fcntl.LOCK_EX)\nprint('held', flush=True)\nsys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(parent / ".partial-mine-living")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        save_log(log, target)
    finally:
        holder.communicate()
    names = sorted(os.listdir(parent))
    assert names == [".partial-mine-living", ".partial-other-x", "mine"]


def _command(raw, target, *more):
    return [
        sys.executable,
        "-m",
        "launch.prepare_data",
        "--dataset=kuaisar",
        f"--raw_dir={raw}",
        f"--data_dir={target}",
        *more,
    ]


def _bigger(tmp_path):
    """KuaiSAR files of some size: 20,000 clicks."""
    rows = [
        kuaisar_files.rec_row(u, u * 7 + t, f"{t}.0", 1) for u in range(100) for t in range(200)
    ]
    return kuaisar_files.write(tmp_path / "kuaisar", rec=rows)


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path, target):
    # A limit on file sizes makes writes fail as a full disk does, without a disk to fill.
    code = "import resource, sys\nsys.argv = sys.argv[1:]\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (100000, resource.RLIM_INFINITY))\n"
    code += "from core import cli\nfrom launch import prepare_data as program\n"
    code += "cli.begin('__main__', program.define_flags, program.check_flags)\n"
    code += "cli.run(program.main)"
    raw = _bigger(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code, *_command(raw, target)[2:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    error = done.stderr.splitlines()[-1]
    assert re.search(r"found File too large; free space or pass another data_dir", error)
    assert os.listdir(os.path.dirname(target)) == []


def test_a_killed_run_leaves_nothing_finished_and_the_next_one_ends_well(tmp_path, target):
    raw = _bigger(tmp_path)
    # A save that sleeps before its last file is killed where most is written.
    code = "import sys, time\nsys.argv = sys.argv[1:]\n"
    code += "from input_pipelines import prepared_log as log\n"
    code += "real = log.describe\ndef slow(log):\n    time.sleep(60)\n    return real(log)\n"
    code += (
        "log.describe = slow\nfrom core import cli\nfrom launch import prepare_data as program\n"
    )
    code += "cli.begin('__main__', program.define_flags, program.check_flags)\n"
    code += "cli.run(program.main)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *_command(raw, target)[2:]],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    parent = pathlib.Path(target).parent
    deadline = time.monotonic() + 60
    while not list(parent.glob(".partial-*/click_items.npy")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(os.listdir(parent)) == 1 and not os.path.exists(target)
    log = prepare.prepare_into("kuaisar", str(raw), target, OPTIONS)
    assert os.listdir(parent) == ["mine"] and len(log.rec_items) == 20_000
