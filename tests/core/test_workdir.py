"""Where a workdir lies, what is in it, and who may change it."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from made_results import row

from core.errors import UserError
from core.workdir import Workdir, check_out, check_workdir, open_workdir


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    check_workdir("~/w", {"seed": 0})
    workdir = open_workdir("~/w", {"seed": 0})
    assert workdir.path == str(tmp_path / "w")
    assert os.listdir(tmp_path) == ["w"]
    assert Workdir("~/w").read_config() == {"seed": 0}


def test_a_tilde_that_is_nobodys_home_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"a home folder for --workdir=~nobody-here/w, found none"):
        open_workdir("~nobody-here/w", {})
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_the_users_mistake():
    with pytest.raises(UserError, match=r"to make the folder /proc/none/w, found .*; free"):
        open_workdir("/proc/none/w", {})


def test_a_workdir_that_cannot_be_written_is_the_users_mistake(tmp_path):
    (tmp_path / ".lock").mkdir()  # as root, all else can be written
    with pytest.raises(UserError, match=f"expected to write in {tmp_path}, found Is a directory;"):
        open_workdir(str(tmp_path), {})


def _write_rows(path, stage, ready):
    workdir = Workdir(path)
    ready.wait()
    for step in range(25):
        own = row(stage=f"{stage}-{step}", per_user=f"per_user/{stage}-{step}.npz")
        workdir.write_result_row(own, {"user": np.arange(2), "hr@1": np.float32([0, 1])})


def test_no_row_of_several_writers_is_lost(tmp_path):
    # Fresh processes: JAX's threads do not live through a fork.
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(3)
    writers = [
        context.Process(target=_write_rows, args=(str(tmp_path), f"s{i}", ready)) for i in range(3)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    stages = {one["stage"] for one in Workdir(str(tmp_path)).read_results()["rows"]}
    assert stages == {f"s{i}-{step}" for i in range(3) for step in range(25)}
    assert len(os.listdir(tmp_path / "per_user")) == 75


def test_a_row_that_is_changed_is_the_one_of_now(tmp_path):
    # What crs_jax.recorded_inputs.note does while launch.evaluate adds a row.
    workdir = Workdir(str(tmp_path))
    workdir.write_result_row(row(stage="a"))
    before = workdir.read_results()["rows"]
    workdir.write_result_row(row(stage="b"))
    workdir.change_results(lambda rows: [one | {"subset": "x"} for one in rows])
    rows = workdir.read_results()["rows"]
    assert len(before) == 1 and [(r["stage"], r["subset"]) for r in rows] == [
        ("a", "x"),
        ("b", "x"),
    ]


def test_a_run_killed_before_its_config_was_there_starts_again(tmp_path):
    old = time.time() - 3600
    for name in (".partial-config.json-ab", ".lock", ".lock-results"):
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (old, old))
    (tmp_path / "log.json").write_text('{"hash": "other"}')
    check_workdir(str(tmp_path), {"seed": 0})
    open_workdir(str(tmp_path), {"seed": 0}, "h")
    assert sorted(os.listdir(tmp_path)) == [".lock", ".lock-results", "config.json", "log.json"]
    assert json.loads((tmp_path / "log.json").read_text()) == {"hash": "h"}


def test_what_killed_writers_left_goes_and_what_living_ones_write_stays(tmp_path):
    open_workdir(str(tmp_path), {})
    old = time.time() - 3600
    for folder in ("per_user", "subsets", "checkpoints"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / ".partial-dead").write_text("half")
        os.utime(tmp_path / folder / ".partial-dead", (old, old))
    code = (
        "import os, sys, time\n"
        "from core.files import open_atomically\n"
        "with open_atomically(sys.argv[1]) as file:\n"
        "    os.utime(file.fileno(), (1, 1))\n"
        "    print('open', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    path = str(tmp_path / "per_user" / "living.npz")
    command = [sys.executable, "-c", code, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        open_workdir(str(tmp_path), {})
        assert not os.path.exists(tmp_path / "subsets" / ".partial-dead")
        (left,) = os.listdir(tmp_path / "per_user")
        assert left.startswith(".partial-living.npz")
        writer.stdin.close()
    assert os.listdir(tmp_path / "per_user") == ["living.npz"]
    assert os.listdir(tmp_path / "checkpoints") == [".partial-dead"]


def test_a_run_without_its_log_is_refused(tmp_path):
    workdir = Workdir(str(tmp_path))
    workdir.check_log("h")  # no run has begun
    workdir = open_workdir(str(tmp_path), {}, "h")
    with pytest.raises(UserError, match=r"expected the log h that the run in .*, found other"):
        workdir.check_log("other")
    (tmp_path / "log.json").unlink()
    del workdir
    for read in (
        lambda: Workdir(str(tmp_path)).check_log("h"),
        lambda: open_workdir(str(tmp_path), {}, "h"),
    ):
        with pytest.raises(UserError, match=r"expected log\.json, .* found none; restore the file"):
            read()
    assert not (tmp_path / "log.json").exists()


def test_a_run_has_trained_once_a_checkpoint_is_there(tmp_path):
    workdir = Workdir(str(tmp_path / "[w]"))
    assert not workdir.has_trained()
    os.makedirs(workdir.file("checkpoints", "joint", ".partial-1"))
    assert not workdir.has_trained()
    os.makedirs(workdir.file("checkpoints", "joint", "20"))
    assert workdir.has_trained()


BROKEN = {
    "empty": b"",
    "cut": b'{"rows": [{"stage": "pre',
    "list": b"[]",
    "latin": b'{"rows": "\xe9"}',
    "nested": b"[" * 100_000,
    "null": b"null",
    "other": b"{}",
    "kinds": b'{"rows": 3, "hash": 3}',
    "folder": None,
}


# Objects without the right keys are for those who use a config to refuse.
NO_OBJECT = [kind for kind in BROKEN if kind not in ("other", "kinds")]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("config.json", kind) for kind in NO_OBJECT),
        *((name, kind) for name in ("log.json", "results.json") for kind in BROKEN),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, name, kind):
    workdir = open_workdir(str(tmp_path), {}, "h")
    workdir.write_result_row(row())
    (tmp_path / name).unlink()
    if BROKEN[kind] is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(BROKEN[kind])
    read = {
        "config.json": workdir.read_config,
        "log.json": lambda: workdir.check_log("h"),
        "results.json": workdir.read_results,
    }[name]
    with pytest.raises(UserError, match=f"expected .*{tmp_path}.*, found .*; ") as caught:
        read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"stage": 3}, r"in row 1 of .*results\.json, found no fitting stage; restore"),
        ({"step": True, "seed": "0"}, "found no fitting step, seed;"),
        ({"metrics": [0.5]}, "found no fitting metrics;"),
        ({"metrics": {"hr@1/full": "0.5"}}, "found no fitting metrics;"),
    ],
    ids=str,
)
def test_a_row_of_other_kinds_is_one_line(tmp_path, entries, words):
    (tmp_path / "results.json").write_text(json.dumps({"rows": [row(), row(**entries)]}))
    with pytest.raises(UserError, match=words):
        Workdir(str(tmp_path)).read_results()
    (tmp_path / "results.json").write_text('{"rows": ["a row"]}')
    with pytest.raises(UserError, match=r"row 0 of .*found 'a row'; restore"):
        Workdir(str(tmp_path)).read_results()


VALUES = {"user": np.arange(4), "hr@1": np.float32([0, 1, 1, 0])}


def with_values(tmp_path, **entries):
    workdir = Workdir(str(tmp_path))
    entries = {"per_user": "per_user/a.npz", "metrics": {"hr@1/full": 0.5}} | entries
    workdir.write_result_row(row(**entries), VALUES)
    (saved,) = workdir.read_results()["rows"]
    return workdir, saved


def test_the_examples_behind_a_row_are_read(tmp_path):
    workdir, saved = with_values(tmp_path)
    users, values = workdir.read_per_user(saved, "hr@1")
    np.testing.assert_array_equal(users, VALUES["user"])
    np.testing.assert_array_equal(values, VALUES["hr@1"])


def _cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def _flip(path):
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("hr@1.npy")
    content = bytearray(path.read_bytes())
    content[info.header_offset + 80] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "harm",
    [
        _cut,
        _flip,
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: np.savez(path, user=VALUES["user"]),
        lambda path: np.savez(path, user=VALUES["user"][:3], **{"hr@1": VALUES["hr@1"]}),
        lambda path: np.savez(path, user=VALUES["user"] / 2, **{"hr@1": VALUES["hr@1"]}),
        lambda path: np.savez(path, user=VALUES["user"], **{"hr@1": np.array(list("abcd"))}),
        # Of another evaluation than the row.
        lambda path: np.savez(path, user=VALUES["user"], **{"hr@1": np.float32([0, 1, 1, 1])}),
        lambda path: np.savez(path, user=VALUES["user"], **{"hr@1": np.float32([0, 1, 1, np.nan])}),
    ],
)
def test_broken_examples_are_one_line(tmp_path, harm):
    workdir, saved = with_values(tmp_path)
    harm(tmp_path / "per_user" / "a.npz")
    with pytest.raises(UserError, match=r"a\.npz, found .*; run launch\.evaluate --workdir"):
        workdir.read_per_user(saved, "hr@1")


RANKS = {
    "above": np.int32([0, 1, 2, 3]),
    "tied": np.zeros(4, np.int32),
    "ranking": np.int32([0, 0, 1, 2]),
    "best": np.int32([[1, 2]] * 4),
}


@pytest.mark.parametrize(
    "harm",
    [
        {"above": RANKS["above"][:3]},
        {"tied": RANKS["tied"] / 2},
        {"ranking": -RANKS["ranking"]},
        {"best": RANKS["best"][0]},
        {"best": RANKS["best"].astype(np.int64)},
        {"above": None},
    ],
    ids=str,
)
def test_the_rankings_behind_a_row_are_read_and_checked(tmp_path, harm):
    workdir = Workdir(str(tmp_path))
    names = {"per_user": "per_user/a.npz", "ranks": "per_user/a.ranks.npz", "examples": 4}
    workdir.write_result_row(row(**names, metrics={"hr@1/full": 0.5}), VALUES, RANKS)
    (saved,) = workdir.read_results()["rows"]
    for name, values in workdir.read_ranks(saved).items():
        np.testing.assert_array_equal(values, RANKS[name])
    arrays = {name: values for name, values in (RANKS | harm).items() if values is not None}
    np.savez(tmp_path / "per_user" / "a.ranks.npz", **arrays)
    (name,) = harm
    with pytest.raises(UserError, match=rf"{name} of 4 examples in .*; run launch\.evaluate"):
        workdir.read_ranks(saved)
    # A run of before has none.
    with pytest.raises(UserError, match=r"per_user in its results of .*, found None; run launch"):
        workdir.read_ranks(row())


@pytest.mark.parametrize("name", [None, 3, "../a.npz", "per_user/../../a.npz", "/etc/a.npz"])
def test_examples_lie_in_the_workdir(tmp_path, name):
    workdir, saved = with_values(tmp_path)
    with pytest.raises(UserError, match=r"expected a file of .*/per_user in its results"):
        workdir.read_per_user(saved | {"per_user": name}, "hr@1")


def test_an_out_may_be_a_link_or_a_device(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "new")
    check_out(str(tmp_path / "link"), "--out")
    check_out("/dev/null", "--out")
    check_out("/dev/stdout", "--out")
    (tmp_path / "lost").symlink_to(tmp_path / "gone" / "new")
    with pytest.raises(UserError, match="in a folder that exists"):
        check_out(str(tmp_path / "lost"), "--out")
