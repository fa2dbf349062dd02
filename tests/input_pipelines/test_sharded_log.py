"""A prepared log in shards: the same log, batches and windows, whatever the number of shards."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from test_csv_shards import events, write_csv

from core import checksums
from core.errors import UserError
from input_pipelines import (
    batches,
    prepare,
    prepared_log,
    search_task,
    sharded_log,
    splits,
    windows,
)
from input_pipelines.candidates import TouchedItems
from input_pipelines.log import RawEvents, build_log
from input_pipelines.sharded_array import ShardedArray

ROOT = pathlib.Path(__file__).parents[2]
SHAPE = batches.BatchShape(rec_length=6, search_length=4, words=3, clicks=2, candidates=5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with raw files and the log made of them in 0 (one piece), 1, 3 and 64 shards."""
    folder = tmp_path_factory.mktemp("sharded")
    clicks, searches = events()
    write_csv(clicks, folder / "raw" / "clicks.csv")
    write_csv(searches, folder / "raw" / "searches.csv")
    for shards in (0, 1, 3, 64):
        prepare.prepare_into(
            "csv_log", str(folder / "raw"), path(folder, shards), {}, shards=shards
        )
    return folder


def path(folder, shards):
    return str(folder / f"log-{shards}")


def opened(folder, shards):
    return prepared_log.load_log(path(folder, shards))


@pytest.fixture
def three(made, tmp_path):
    return pathlib.Path(shutil.copytree(path(made, 3), tmp_path / "log"))


def everything():
    """A log with every optional array of events; some users do nothing, one does most."""
    rng = np.random.default_rng(5)
    users = np.array([f"u{n}" for n in np.minimum(rng.geometric(0.3, 60), 12)])
    log = build_log(
        "tiny",
        RawEvents(
            click_user=users,
            click_item=[f"i{n}" for n in rng.integers(0, 30, 60)],
            click_time=rng.integers(0, 99, 60),
            search_user=users[:25],
            search_time=rng.integers(50, 99, 25),
            search_words=[[f"w{n % 7}"] * (n % 3) for n in range(25)],
            search_clicks=[[f"i{n % 30}"] * (n % 2 + 1) for n in range(25)],
            search_unclicked=[[f"i{n + 1}"] * (n % 4) for n in range(25)],
            search_places=["somewhere" if n % 2 else "" for n in range(25)],
            search_begins=rng.integers(0, 50, 25),
        ),
    )
    assert log.search_begins is not None
    return log


@pytest.mark.parametrize("shards", [1, 2, 5, 90])
def test_the_arrays_end_to_end_are_those_of_one_piece(tmp_path, shards):
    log = everything()
    prepared_log.save_log(log, str(tmp_path / "log"), shards=shards)
    again = prepared_log.load_log(str(tmp_path / "log"))
    in_shards = sharded_log.arrays_of({"starts": sharded_log.cut(log, shards)})
    assert len(in_shards) == 11
    assert prepared_log.count_shards(str(tmp_path / "log")) == shards
    for name, value in vars(log).items():
        other = getattr(again, name)
        if isinstance(value, np.ndarray):
            assert isinstance(other, ShardedArray) == (name in in_shards), name
            np.testing.assert_array_equal(np.asarray(other), value)
            assert other.dtype == value.dtype
    assert prepare.validate_prepared(str(tmp_path / "log")).hash == log.hash


def test_a_user_is_in_one_shard_and_shards_have_as_many_events():
    log = everything()
    starts = sharded_log.cut(log, 4)
    assert set(starts["rec_items"]) <= set(np.asarray(log.rec_offsets).tolist())
    assert set(starts["search_times"]) <= set(np.asarray(log.search_offsets).tolist())
    per_user = np.diff(log.rec_offsets) + np.diff(log.search_offsets)
    events_of = np.diff(starts["rec_items"]) + np.diff(starts["search_times"])
    assert events_of.sum() == 85 and abs(events_of - 85 / 4).max() <= per_user.max()


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], name)
        assert one[name].dtype == other[name].dtype


@pytest.mark.parametrize("hosts", [1, 4])
@pytest.mark.parametrize("kind", ["examples", "searches", "windows"])
def test_batches_are_the_same_bits(made, kind, hosts):
    def source(shards, host, of):
        log = opened(made, shards)
        parts = splits.split_log(log, "leave_one_out")
        splits.check_leakage(log, parts)
        settings = dict(batch_size=16, seed=3, negatives=4, process_index=host, process_count=of)
        if kind == "windows":
            return windows.WindowBatches(
                log, parts.train, SHAPE, targets_per_window=4, row_multiple=4, **settings
            )
        searches = None
        if kind == "searches":
            searches = search_task.training_searches(log, parts)
        return batches.TrainBatches(log, parts.train, SHAPE, searches=searches, **settings)

    whole = source(0, 0, hosts if kind == "searches" else 1)
    for shards in (1, 3, 64):
        every = [source(shards, host, hosts) for host in range(hosts)]
        for step in (0, 7):
            if kind == "searches":
                same(whole.batch_at(step), every[0].batch_at(step))
                continue
            parts = [each.batch_at(step) for each in every]
            joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            same(whole.batch_at(step), joined)


def test_a_user_is_read_from_its_own_shard(made):
    log = opened(made, 3)
    parts = splits.split_log(opened(made, 0), "leave_one_out")
    starts = sharded_log.cut(log, 3)
    own = [np.searchsorted(starts["rec_items"], row, side="right") - 1
           for row in parts.test.target_row]  # fmt: skip
    first = own.index(1)
    assert opened(made, 3).rec_items.opened == []
    candidates = np.ones((1, 5), np.int32)
    log = opened(made, 3)
    batches.assemble(log, parts.test, np.array([first]), SHAPE, candidates)
    assert log.rec_items.opened == log.rec_times.opened == [1]


def damage(folder, how):
    """Harms the second of three shards, 'shard-00001-of-00003'."""
    shards = [folder / sharded_log.folder_of(number, 3) for number in range(3)]
    file = shards[1] / "rec_items.npy"
    if how == "missing":
        shutil.rmtree(shards[1])
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    elif how == "a file missing":
        file.unlink()
    elif how == "other type":
        np.save(file, np.load(file).astype(np.int64))
    elif how == "twice":
        shutil.rmtree(shards[1])
        shutil.copytree(shards[2], shards[1])
    elif how == "files of another":
        for name in os.listdir(shards[2]):
            if name.endswith(".npy"):
                shutil.copy(shards[2] / name, shards[1] / name)
    elif how == "no record":
        (shards[1] / "shard.json").unlink()
    else:
        record = checksums.read_sealed(str(shards[1] / "shard.json"), "", "")
        record["log" if how == "another log" else "shards"] = "0123" if "log" in how else 7
        checksums.write_sealed(str(shards[1] / "shard.json"), record)


@pytest.mark.parametrize(
    ("how", "found"),
    [
        (
            "missing",
            r"expected shard 1 of the log \w+ in .*shard-00001-of-00003, found no such f",
        ),
        ("cut", r"expected \d+ bytes in .*00001-of-00003.rec_items\.npy, found \d+ bytes"),
        ("a file missing", r"bytes in .*shard-00001-of-00003.rec_items\.npy, found no such file"),
        ("other type", r"expected \d+ bytes in .*00001-of-00003.rec_items\.npy, found \d+ bytes"),
        ("twice", r"expected shard 1 of the log .*shard-00001-of-00003, found shard 2"),
        ("files of another", r"expected \d+ bytes in .*shard-00001-of-00003.*, found \d+ bytes"),
        ("no record", r"shard-00001-of-00003.shard\.json, found no such file"),
        ("another log", r"expected shard 1 of the log \w{16} in .*, found one of the log 0123"),
        ("another number of shards", r"found one of another preparation, of 7 shards"),
    ],
)
def test_a_shard_that_does_not_belong_is_refused_when_the_log_is_opened(three, how, found):
    damage(three, how)
    with pytest.raises(UserError, match=f"{found}.*; copy the shard back, or remove "):
        prepared_log.load_log(str(three))


def changed(folder):
    """Changes one number of the second shard; its files are as long as before."""
    file = folder / sharded_log.folder_of(1, 3) / "rec_items.npy"
    items = np.load(file)
    items[0] = items[0] % 40 + 1
    np.save(file, items)


@pytest.mark.parametrize("with_tensorflow", [True, False])
def test_a_change_under_a_run_ends_it_when_the_shard_is_read(three, with_tensorflow, monkeypatch):
    if with_tensorflow:
        pytest.importorskip("tensorflow")
    else:
        monkeypatch.setattr(batches.importlib.util, "find_spec", lambda name: None)
    whole = prepared_log.load_log(str(three))
    train = splits.split_log(whole, "leave_one_out").train
    # The first batch shows the first shard alone.
    seed = next(s for s in range(99) if first_shard(whole, train, s) == [0])
    log = prepared_log.load_log(str(three))
    source = batches.TrainBatches(
        *(log, train, SHAPE), batch_size=1, seed=seed, negatives=4, touched=TouchedItems(whole)
    )
    changed(three)
    stream = source.stream(0)
    with pytest.raises(UserError, match=r"shard-00001.*rec_items\.npy, found .* has changed since"):
        for _ in stream:
            pass


def first_shard(log, train, seed):
    """Returns the shard of the first example that a seed shows."""
    source = batches.TrainBatches(log, train, SHAPE, batch_size=1, seed=seed, negatives=4)
    user = source.batch_at(0)["user"]
    starts = sharded_log.cut(log, 3)["rec_items"]
    return (np.searchsorted(starts, log.rec_offsets[user], side="right") - 1).tolist()


def test_validating_reads_every_shard(three):
    changed(three)
    log = prepared_log.load_log(str(three))
    assert log.rec_items[0] > 0
    with pytest.raises(UserError, match=r"rec_items\.npy, found .*: its content has changed since"):
        prepare.validate_prepared(str(three))


def test_a_day_is_not_appended_to_shards(made, tmp_path):
    day, _ = events(seed=1)
    write_csv(day, tmp_path / "day" / "clicks.csv")
    write_csv(events(seed=1)[1], tmp_path / "day" / "searches.csv")
    before = sorted(os.listdir(path(made, 3)))
    with pytest.raises(UserError, match=r"expected a log in one piece .*found 3 shard"):
        prepare.append_into("csv_log", str(tmp_path / "day"), path(made, 3), {})
    assert sorted(os.listdir(path(made, 3))) == before


def test_another_number_of_shards_is_not_the_same_log(made):
    raw = str(made / "raw")
    prepare.prepare_into("csv_log", raw, path(made, 3), {}, shards=3)
    for shards, there, said in ((0, 3, "one piece.*3 shards"), (1, 0, "1 shard at .*one piece")):
        with pytest.raises(UserError, match=f"expected nothing or a log in {said}; remove it"):
            prepare.prepare_into("csv_log", raw, path(made, there), {}, shards=shards)


def test_the_program_writes_shards_and_says_mistakes_in_one_line(made, tmp_path):
    def run(*more):
        return subprocess.run(
            [sys.executable, "-m", "launch.prepare_data", *more],
            cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    raw = ["--dataset=csv_log", f"--raw_dir={made / 'raw'}"]
    done = run(*raw, f"--data_dir={tmp_path / 'd'}", "--shards=5")
    assert done.returncode == 0, done.stderr
    card = json.loads(done.stdout)
    assert card["hash"] == opened(made, 0).hash
    assert sum(name.endswith("-of-00005") for name in os.listdir(tmp_path / "d")) == 5
    done = run(*raw, "--shards=5")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "expected --shards with --data_dir=D" in done.stderr
