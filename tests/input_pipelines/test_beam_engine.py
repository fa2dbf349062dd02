"""csv_log by Apache Beam: byte for byte the log of one machine, whoever does what."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from test_csv_shards import events, write_csv, write_parquet

from core.errors import UserError
from input_pipelines import prepare

pytest.importorskip("apache_beam", reason="apache-beam is an extra")
from input_pipelines import beam_engine
from input_pipelines.readers import csv_log

ROOT = pathlib.Path(__file__).parents[2]
ONE = "--runner=DirectRunner --direct_running_mode=in_memory"
SEVERAL = "--runner=DirectRunner --direct_running_mode=multi_processing --direct_num_workers=2"
OPTIONS = {"segmenter": "characters"}


def raw_folder(folder, clicks=None, searches=None, items=None, write=write_csv, suffix="csv"):
    """Three shards of clicks and two of searches."""
    default = events()
    clicks = default[0] if clicks is None else clicks
    searches = default[1] if searches is None else searches
    for number, rows in enumerate((slice(0, 100), slice(100, 110), slice(110, None))):
        write(clicks[rows], folder / "clicks" / f"{number}.{suffix}")
    for number, rows in enumerate((slice(0, 70), slice(70, None))):
        write(searches[rows], folder / "searches" / f"{number}.{suffix}")
    if items is not None:
        write(items, folder / f"items.{suffix}")
    return str(folder)


def files_in(folder):
    paths = (path for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return sorted(path.relative_to(folder) for path in paths)


def same_folders(one, other):
    names = files_in(one)
    assert names == files_in(other) and pathlib.Path("meta.json") in names
    for name in names:
        assert pathlib.Path(one, name).read_bytes() == pathlib.Path(other, name).read_bytes(), name


@pytest.mark.parametrize("beam_options", [ONE, SEVERAL])
def test_the_folder_is_that_of_one_machine_byte_for_byte(tmp_path, beam_options):
    raw = raw_folder(tmp_path / "raw")
    made = [str(tmp_path / name) for name in ("local", "beam")]
    prepare.prepare_into("csv_log", raw, made[0], OPTIONS)
    prepare.prepare_into("csv_log", raw, made[1], OPTIONS, beam_options=beam_options)
    same_folders(*made)
    assert sorted(os.listdir(tmp_path)) == ["beam", "local", "raw"]


def test_shards_are_those_of_one_machine_byte_for_byte(tmp_path):
    raw = raw_folder(tmp_path / "raw")
    made = [str(tmp_path / name) for name in ("local", "beam")]
    prepare.prepare_into("csv_log", raw, made[0], OPTIONS, shards=3)
    prepare.prepare_into("csv_log", raw, made[1], OPTIONS, beam_options=ONE, shards=3)
    same_folders(*made)
    assert pathlib.Path("shard-00002-of-00003", "rec_items.npy") in files_in(made[1])


@pytest.mark.parametrize("parts", [1, 7])
def test_own_clicks_titles_dates_and_other_names(tmp_path, parts):
    clicks, searches = events()
    rng = np.random.default_rng(3)
    # A tenth of the clicks name a session of their user.
    by_user = searches.groupby("user").session.apply(list).to_dict()
    clicks["search_session"] = [
        rng.choice(by_user[user]) if user in by_user and rng.random() < 0.3 else ""
        for user in clicks.user
    ]
    for frame in (clicks, searches):
        frame["time"] = pd.to_datetime(frame.time, unit="s").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
        frame.rename(columns={"user": "uid"}, inplace=True)
    searches["clicked_items"] = searches.clicked_items.str.split()
    items = pd.DataFrame({"item": ["é1", "sofa", "é1"], "title": ["one", "Sofa", "One"]})
    raw = raw_folder(tmp_path / "raw", clicks, searches, items, write_parquet, "parquet")
    expected = csv_log.read_csv_log(raw, columns="user=uid")
    folder = tmp_path / "scratch"
    folder.mkdir()
    log = beam_engine.read_csv_log(
        raw, str(folder), beam_engine.options_of(ONE), columns="user=uid", parts=parts
    )
    assert log.hash == expected.hash and log.search_begins is not None
    assert log.item_texts() == expected.item_texts() and "One" in log.item_texts()
    assert (log.reading, log.time_unit) == (expected.reading, expected.time_unit)
    assert len([name for name in os.listdir(folder) if name.startswith("part-")]) == parts


def changed(column, row, value, table=0):
    def change(frames):
        frames[table].loc[frames[table].index[row], column] = value

    return change


def named_session(frames):
    frames[0]["search_session"] = ["nowhere"] + [""] * (len(frames[0]) - 1)


@pytest.mark.parametrize(
    "change",
    [
        changed("item", 120, "a b"),
        changed("time", 5, "soon"),
        changed("time", slice(110, None), 1_700_000_000_000),
        changed("session", 80, "s3", table=1),
        named_session,
    ],
)
def test_mistakes_are_told_as_on_one_machine(tmp_path, change):
    frames = list(events())
    for frame in frames:
        frame["time"] = frame.time.astype(object)
    change(frames)
    frames[1]["user"] = "user1"
    raw = raw_folder(tmp_path / "raw", *frames)
    messages = []
    for beam_options in (None, ONE):
        with pytest.raises(UserError) as error:
            prepare.prepare_into(
                "csv_log", raw, str(tmp_path / "made"), OPTIONS, beam_options=beam_options
            )
        messages.append(str(error.value))
    assert messages[0] == messages[1] and "\n" not in messages[0]
    assert os.listdir(tmp_path) == ["raw"]


def test_the_same_shard_twice(tmp_path):
    raw = raw_folder(tmp_path / "raw")
    clicks = events()[0]
    write_csv(clicks[110:][::-1], tmp_path / "raw" / "clicks" / "again.csv.gz")
    with pytest.raises(UserError, match=r"each shard once, found the same \d+ rows in .*2\.csv"):
        prepare.prepare_into("csv_log", raw, str(tmp_path / "made"), OPTIONS, beam_options=ONE)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("--runer=DirectRunner", "'--runer=DirectRunner', which is none"),
        ("--runner=Nobody", "Nobody"),
        ("--runner=DirectRunner --direct_num_workers=two", "invalid int value: 'two'"),
    ],
)
def test_options_that_do_not_exist_are_one_line(options, found):
    with pytest.raises(UserError, match=found) as error:
        beam_engine.options_of(options)
    assert "\n" not in str(error.value)


def test_what_a_runner_says_is_told_whole(tmp_path, monkeypatch):
    def refuse(options):
        raise ValueError("Pipeline has validations errors:\nMissing required option: project")

    monkeypatch.setattr(beam_engine.beam, "Pipeline", refuse)
    raw = str(raw_folder(tmp_path / "raw"))
    with pytest.raises(UserError, match=r"errors: Missing required option: project\); see the"):
        prepare.prepare_into("csv_log", raw, str(tmp_path / "d"), OPTIONS, beam_options=ONE)
    assert not (tmp_path / "d").exists()


def test_other_data_sets_are_refused(tmp_path):
    raw = raw_folder(tmp_path / "raw")
    with pytest.raises(UserError, match="expected --dataset=csv_log for --engine=beam, found qil"):
        prepare.prepare_into("qilin", raw, str(tmp_path / "made"), OPTIONS, beam_options=ONE)


def command(raw, made, *more):
    program = [sys.executable, "-m", "launch.prepare_data", "--dataset=csv_log"]
    return [*program, f"--raw_dir={raw}", f"--data_dir={made}", *more]


def test_the_program_ends_in_one_line(tmp_path):
    raw = raw_folder(tmp_path / "raw")
    for more, found in (
        (["--engine=beam", "--beam_options=--no_such=1"], "found '--no_such=1', which is none"),
        (["--beam_options=--no_such=1"], "expected --engine=beam with --beam_options, found local"),
        (["--engine=beam", "--append"], "expected --engine=beam with --data_dir=D and no --append"),
    ):
        done = subprocess.run(
            command(raw, tmp_path / "made", *more), cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 2 and found in done.stderr.splitlines()[-1]
        assert os.listdir(tmp_path) == ["raw"]


@pytest.mark.slow
def test_many_users_by_several_processes(tmp_path):
    rng = np.random.default_rng(0)
    users, clicks, searches = 200_000, 1_500_000, 60_000
    frames = [
        pd.DataFrame(
            {
                "user": [f"u{n}" for n in rng.integers(0, users, size)],
                "time": rng.integers(0, 10**6, size) + 1_700_000_000,
            }
        )
        for size in (clicks, searches)
    ]
    frames[0]["item"] = rng.integers(0, 20_000, clicks)
    frames[1]["session"] = np.arange(searches)
    frames[1]["query"] = [f"w{n} w{n % 7}" for n in rng.integers(0, 900, searches)]
    frames[1]["clicked_items"] = [[n] for n in rng.integers(0, 20_000, searches)]
    raw = raw_folder(tmp_path / "raw", *frames, write=write_parquet, suffix="parquet")
    made = [str(tmp_path / name) for name in ("local", "beam")]
    # As the program's flags have them.
    options = OPTIONS | {"columns": "", "time_unit": "infer"}
    prepare.prepare_into("csv_log", raw, made[0], options)
    done = subprocess.run(
        command(raw, made[1], "--engine=beam", f"--beam_options={SEVERAL}"),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    same_folders(*made)
