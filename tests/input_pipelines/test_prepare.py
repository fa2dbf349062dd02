"""Preparing: read once, reused after, never half-written."""

import dataclasses
import json
import os
import pathlib
import shutil

import pytest
from damage import flipped_bits

from core.errors import UserError
from input_pipelines import prepare
from input_pipelines.log import ARRAYS, TEXT_ARRAYS
from input_pipelines.log_checks import validate_log

EXAMPLE = pathlib.Path(__file__).parents[1] / "data" / "csv_log"
OPTIONS = {"segmenter": "characters"}


@pytest.fixture
def raw(tmp_path):
    return pathlib.Path(shutil.copytree(EXAMPLE, tmp_path / "raw"))


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


@pytest.fixture
def reads(monkeypatch):
    """The readings that take place, in a list."""
    reader, calls = prepare.READERS["csv_log"], []

    def read(data_dir, **settings):
        calls.append(settings)
        return reader.read(data_dir, **settings)

    counted = dataclasses.replace(reader, read=read)
    monkeypatch.setitem(prepare.READERS, "csv_log", counted)
    return calls


def test_the_second_run_reuses_what_the_first_saved(raw, cache, reads):
    log, directory = prepare.prepare_log("csv_log", str(raw), cache, OPTIONS)
    validate_log(log)
    assert pathlib.Path(directory).parent == pathlib.Path(cache)
    assert pathlib.Path(directory).name.startswith("csv_log-")
    again, same = prepare.prepare_log("csv_log", str(raw), cache, OPTIONS)
    assert (same, again.hash, len(reads)) == (directory, log.hash, 1)
    assert set(os.listdir(cache)) - {"raw-hashes.json"} == {pathlib.Path(directory).name}


def test_other_files_or_settings_are_prepared_anew(raw, cache, reads, monkeypatch):
    def directory(options):
        return prepare.prepare_log("csv_log", str(raw), cache, options)[1]

    folders = [directory(OPTIONS)]
    folders.append(directory({"segmenter": "jieba"}))
    with open(raw / "clicks.csv", "a", encoding="utf-8") as file:
        file.write("zoe,mug,900\n")
    folders.append(directory(OPTIONS))
    (raw / "items.csv").unlink()
    folders.append(directory(OPTIONS))
    reader = prepare.READERS["csv_log"]
    newer = dataclasses.replace(reader, version=reader.version + 1)
    monkeypatch.setitem(prepare.READERS, "csv_log", newer)
    folders.append(directory(OPTIONS))
    assert len(set(folders)) == len(reads) == 5
    # A setting of another data set, a file nobody reads or another time of a file changes nothing.
    os.utime(raw / "clicks.csv", (0, 0))
    (raw / "notes.txt").write_text("mine")
    other = dataclasses.replace(reader, settings=("order",))
    monkeypatch.setitem(prepare.READERS, "amazon_raw", other)
    assert directory(OPTIONS | {"order": 3}) == folders[-1] and len(reads) == 5
    assert prepare.prepare_log("csv_log", str(raw), cache, OPTIONS)[0].num_users == 6


def test_a_moved_copy_with_the_same_times_is_the_same(raw, cache, reads, tmp_path):
    first = prepare.prepare_log("csv_log", str(raw), cache, OPTIONS)[1]
    moved = shutil.move(raw, tmp_path / "elsewhere")
    assert prepare.prepare_log("csv_log", str(moved), cache, OPTIONS)[1] == first


def test_nothing_is_written_beside_the_raw_files(raw, cache):
    before = sorted(os.listdir(raw))
    raw.chmod(0o555)
    try:
        prepare.prepare_log("csv_log", str(raw), cache, OPTIONS)
    finally:
        raw.chmod(0o755)
    assert sorted(os.listdir(raw)) == before


def test_malformed_files_leave_nothing_behind(raw, cache):
    (raw / "clicks.csv").write_text("user,item,time\na,b,soon\n")
    with pytest.raises(UserError, match="found 'soon' in row 1"):
        prepare.prepare_log("csv_log", str(raw), cache, OPTIONS)
    assert os.listdir(cache) == []


def test_a_log_that_breaks_the_schema_is_not_saved(raw, cache, monkeypatch):
    reader = prepare.READERS["csv_log"]

    def unsorted(data_dir, **settings):
        log = reader.read(data_dir, **settings)
        return dataclasses.replace(log, rec_times=log.rec_times[::-1])

    broken = dataclasses.replace(reader, read=unsorted)
    monkeypatch.setitem(prepare.READERS, "csv_log", broken)
    with pytest.raises(UserError, match="in time order"):
        prepare.prepare_log("csv_log", str(raw), cache, OPTIONS)
    assert os.listdir(cache) == []


def test_files_of_equal_sizes_and_times_do_not_share_a_log(raw, cache, tmp_path):
    """As after `touch -d @0`, or a copy without times."""
    other = pathlib.Path(shutil.copytree(raw, tmp_path / "other"))
    content = (other / "clicks.csv").read_text()
    (other / "clicks.csv").write_text(content.replace("mug", "cup"))
    logs = []
    for folder in (raw, other, raw):
        for path in folder.iterdir():
            os.utime(path, (0, 0))
        logs.append(prepare.prepare_log("csv_log", str(folder), cache, OPTIONS))
    assert logs[0][1] == logs[2][1] != logs[1][1]
    assert "cup" in logs[1][0].item_ids and "cup" not in logs[0][0].item_ids


def test_a_flipped_bit_of_a_prepared_log_is_found(raw, cache):
    directory = pathlib.Path(prepare.prepare_log("csv_log", str(raw), cache, OPTIONS)[1])
    files = sorted(directory.iterdir())
    names = {f"{name}.npy" for name in (*ARRAYS, *TEXT_ARRAYS)}
    assert names < {path.name for path in files}
    for path in files:
        for what in flipped_bits(path, 4):
            with pytest.raises(UserError, match=r"remove .* and run the command again"):
                prepare.prepare_log("csv_log", str(raw), cache, OPTIONS)
                pytest.fail(what)
    prepare.prepare_log("csv_log", str(raw), cache, OPTIONS)


def test_a_folder_of_an_older_format_is_refused_in_one_line(raw, cache):
    directory = prepare.prepare_log("csv_log", str(raw), cache, OPTIONS)[1]
    path = pathlib.Path(directory, "meta.json")
    meta = json.loads(path.read_text())
    del meta["format"], meta["checksum"]
    path.write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"in format 2 in .*, found 1; remove") as error:
        prepare.prepare_log("csv_log", directory, cache, OPTIONS)
    assert "\n" not in str(error.value)


def test_a_prepared_log_cut_short_is_refused(raw, cache):
    directory = prepare.prepare_log("csv_log", str(raw), cache, OPTIONS)[1]
    path = os.path.join(directory, "rec_times.npy")
    os.truncate(path, os.path.getsize(path) - 8)
    with pytest.raises(UserError, match=r"bytes in .*rec_times.npy.*remove .* run the command"):
        prepare.prepare_log("csv_log", str(raw), cache, OPTIONS)


@pytest.mark.parametrize(
    ("dataset", "data_dir", "options", "found"),
    [
        (
            "movies",
            None,
            OPTIONS,
            "a dataset of qilin, csv_log, .*, trivago, .*, kuaisar, found 'movies'",
        ),
        ("csv_log", "nowhere", OPTIONS, "raw files of csv_log at .*nowhere, found nothing"),
        ("csv_log", "raw/clicks.csv", OPTIONS, "found a file"),
        ("csv_log", None, {"segmentor": "x"}, "segmenter, time_unit, found 'segmentor'"),
        ("csv_log", None, {"segmenter": "x"}, "a segmenter of characters, jieba, found 'x'"),
        ("qilin", None, OPTIONS, r"expected search_train/\*.parquet"),
        ("amazon_beauty", None, OPTIONS, "expected sequences.tsv"),
    ],
)
def test_mistakes_end_in_one_line(raw, cache, dataset, data_dir, options, found):
    where = raw if data_dir is None else raw.parent / data_dir
    with pytest.raises(UserError, match=found) as error:
        prepare.prepare_log(dataset, str(where), cache, options)
    assert "\n" not in str(error.value)
    assert not os.path.exists(cache) or os.listdir(cache) == []


def test_a_cache_that_cannot_be_written(raw, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="pass another cache_dir") as error:
        prepare.prepare_log("csv_log", str(raw), str(tmp_path / "cache"), OPTIONS)
    assert "\n" not in str(error.value)


def test_a_full_disk_leaves_nothing_and_says_so(raw, cache, monkeypatch):
    def full(file, array, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.save", full)
    with pytest.raises(UserError, match="No space left on device; free space or pass another"):
        prepare.prepare_log("csv_log", str(raw), cache, OPTIONS)
    assert os.listdir(cache) == []
