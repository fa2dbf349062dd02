"""A cache of several users, read-only data, and what killed processes leave in a cache."""

import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import tempfile
import time

import pytest

from core import checksums
from core.errors import UserError
from input_pipelines import candidates, prepare, prepared_log
from input_pipelines.raw_hashes import RawHashes
from input_pipelines.sample import generator
from input_pipelines.splits import split_log

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLE = pathlib.Path(__file__).parents[1] / "data" / "csv_log"
OPTIONS = {"segmenter": "characters"}
# Draws the lists of a prepared folder as another user (nobody) and prints where they lie.
AS_NOBODY = """
import os, sys
from input_pipelines import candidates, prepare
from input_pipelines.splits import split_log
from core.errors import UserError
def lists(data_dir, cache_dir):
    options = {"segmenter": "characters"}
    log, folder = prepare.prepare_log("csv_log", data_dir, cache_dir, options)
    splits = split_log(log, "leave_one_out")
    return candidates.evaluation_candidates(
        log, splits, "test", "neg99", 0, folder, cache_dir=cache_dir
    )
# Imports what it needs while it may: another user may not be able to read Python's files.
lists(sys.argv[3], sys.argv[4])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    print(lists(*sys.argv[1:3]).tolist())
except UserError as error:
    print("UserError:", error)
"""
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


@pytest.fixture
def folder(tmp_path):
    """A folder that every user can reach, with raw data of 130 items."""
    made = pathlib.Path(tempfile.gettempdir())
    for path in (tmp_path, *(path for path in tmp_path.parents if made in path.parents)):
        path.chmod(0o755)
    raw = pathlib.Path(shutil.copytree(EXAMPLE, tmp_path / "raw"))
    with open(raw / "items.csv", "a", encoding="utf-8") as file:
        columns = (EXAMPLE / "items.csv").read_text().splitlines()[0].count(",")
        file.writelines(f"more{n}{',' * columns}\n" for n in range(130))
    return tmp_path


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield lambda mask: os.umask(mask)
    os.umask(before)


def lists_of(directory, cache_dir=""):
    log = prepared_log.load_log(directory)
    splits = split_log(log, "leave_one_out")
    return candidates.evaluation_candidates(
        log, splits, "test", "neg99", 0, directory, cache_dir=cache_dir
    )


def as_nobody(folder, data_dir, cache_dir):
    own = [str(folder / "raw"), str(folder / "of_root")]
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, data_dir, cache_dir, *own],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not done.returncode, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_and_folders_have_the_modes_of_the_umask(folder, umask, mask):
    umask(mask)
    cache = folder / "cache"
    raw = str(folder / "raw")
    directory = prepare.prepare_log("csv_log", raw, str(cache), OPTIONS)[1]
    lists_of(directory)
    generator.ensure_sample(str(cache), num_users=3, seed=0, shuffle_searches=False)
    paths = [cache, *cache.rglob("*")]
    assert any(path.suffix == ".json" and "neg99" in path.name for path in paths)
    for path in paths:
        wanted = (0o777 if path.is_dir() else 0o666) & ~mask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


@needs_root
def test_a_second_user_reads_what_the_first_has_drawn(folder):
    cache = str(folder / "cache")
    directory = prepare.prepare_log("csv_log", str(folder / "raw"), cache, OPTIONS)[1]
    drawn = lists_of(directory)
    assert as_nobody(folder, directory, cache) == str(drawn.tolist())
    # What may not be read is not called damaged, and nobody is told to remove it.
    (hidden,) = pathlib.Path(directory).glob("*neg99*.json")
    for path in (hidden, hidden.with_suffix(".npy"), pathlib.Path(directory, "rec_items.npy")):
        path.chmod(0o600)
        said = as_nobody(folder, directory, cache)
        path.chmod(0o644)
        assert said.startswith("UserError: expected to read ") and "Permission denied" in said
        assert "remove" not in said and path.name in said


@needs_root
def test_a_prepared_folder_that_cannot_be_written_is_used(folder):
    data, cache = str(folder / "data"), folder / "cache"
    prepare.prepare_into("csv_log", str(folder / "raw"), data, OPTIONS)
    before = sorted(os.listdir(data))
    cache.mkdir()
    cache.chmod(0o777)
    first = as_nobody(folder, data, str(cache))
    assert sorted(os.listdir(data)) == before
    (apart,) = cache.glob("beside-*")
    (lists,) = apart.glob("*neg99*.npy")
    drawn = lists.stat().st_mtime_ns
    assert as_nobody(folder, data, str(cache)) == first and lists.stat().st_mtime_ns == drawn
    # They are the lists that the folder's owner has.
    assert str(lists_of(data).tolist()) == first
    cache.chmod(0o755)
    shutil.rmtree(apart)
    for path in pathlib.Path(data).glob("*neg99*"):
        path.unlink()
    said = as_nobody(folder, data, str(cache))
    assert said.startswith("UserError: expected to write") and "pass another cache_dir" in said


def test_what_kills_have_left_in_a_cache_goes_and_what_is_written_stays(folder):
    cache = folder / "cache"
    directory = pathlib.Path(
        prepare.prepare_log("csv_log", str(folder / "raw"), str(cache), OPTIONS)[1]
    )
    old = time.time() - 3600
    for place in (cache, directory):
        (place / ".partial-lists").write_bytes(b"half")
        (place / ".partial-new").write_bytes(b"half")
        os.utime(place / ".partial-lists", (old, old))
    with_lock = cache / ".partial-living"
    with_lock.mkdir()
    code = "import fcntl, os, sys\nfd = os.open(sys.argv[1], os.O_RDONLY)\n"
    code += "fcntl.flock(fd, fcntl.LOCK_EX)\nprint('held', flush=True)\nsys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(with_lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        os.utime(with_lock, (old, old))
        prepare.prepare_log("csv_log", str(folder / "raw"), str(cache), OPTIONS)
    finally:
        holder.communicate()
    left = {path.name for place in (cache, directory) for path in place.glob(".partial-*")}
    assert left == {".partial-new", ".partial-living"}


def test_a_damaged_sample_is_refused(folder):
    cache = str(folder / "cache")
    out = pathlib.Path(generator.ensure_sample(cache, num_users=3, seed=0, shuffle_searches=False))
    for name in ("notes/0.parquet", "truth.json", "SAMPLE"):
        content = (out / name).read_bytes()
        (out / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match=r"has changed since it was saved; remove .*sample-v"):
            generator.ensure_sample(cache, num_users=3, seed=0, shuffle_searches=False)
        (out / name).write_bytes(content)
    assert generator.ensure_sample(cache, num_users=3, seed=0, shuffle_searches=False) == str(out)


def test_a_hash_is_remembered_for_the_file_it_is_of(folder):
    path = folder / "raw" / "clicks.csv"
    cache = str(folder / "cache")
    first = RawHashes(cache)
    digits = first.of(path)
    first.save()
    # A file that has just changed may change again within a tick of the clock.
    assert not os.path.exists(os.path.join(cache, "raw-hashes.json"))
    time.sleep(2.1)
    second = RawHashes(cache)
    assert second.of(path) == digits
    second.save()
    remembered = pathlib.Path(cache, "raw-hashes.json")
    (key,) = json.loads(remembered.read_text())["files"]
    status = path.stat()
    assert key.split("-")[1:3] == [str(status.st_ino), str(status.st_size)]
    # Other content of the same size, and its old time: the time of change tells.
    content = path.read_bytes()
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert RawHashes(cache).of(path) != digits
    path.write_bytes(content)
    for values in ({}, {"files": [key]}, {"files": {key: 3}}):
        checksums.write_sealed(str(remembered), values)
        assert RawHashes(cache).of(path) == digits
    remembered.write_text("{")
    assert RawHashes(cache).of(path) == digits


def test_raw_files_that_cannot_be_read_are_one_line(folder):
    with pytest.raises(UserError, match=r"expected to read .*nowhere, found No such file"):
        RawHashes("").of(folder / "nowhere")
