"""csv_log from folders of shards: packed, partitioned, in any order; and shards that do not fit."""

import gzip
import os
import pathlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import UserError
from input_pipelines import prepare
from input_pipelines.readers import csv_log, csv_shards

ROOT = pathlib.Path(__file__).parents[2]


def events(seed=0, clicks=400, searches=120):
    """Clicks and searches of 20 users, many at equal times."""
    rng = np.random.default_rng(seed)
    users, items = (np.array([f"{kind}{n}" for n in range(40)]) for kind in ("user", "é"))
    made = pd.DataFrame(
        {
            "user": users[rng.integers(0, 20, clicks)],
            "item": items[rng.integers(0, 40, clicks)],
            "time": rng.integers(0, 60, clicks) + 1_700_000_000,
        }
    ).drop_duplicates()
    asked = pd.DataFrame(
        {
            "user": users[rng.integers(0, 25, searches)],
            "session": [f"s{n}" for n in range(searches)],
            "time": rng.integers(0, 60, searches) + 1_700_000_000,
            "query": [
                " ".join(f"w{w}" for w in rng.integers(0, 9, n % 3)) for n in range(searches)
            ],
            "clicked_items": [
                " ".join(items[rng.integers(0, 40, n % 4)].tolist()) for n in range(searches)
            ],
        }
    )
    return made, asked


def write_csv(frame, path):
    text = frame.to_csv(index=False).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zst":
        with pa.output_stream(str(path), compression="zstd") as file:
            file.write(text)
    else:
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def write_parquet(frame, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path, index=False)


@pytest.fixture
def plain(tmp_path):
    clicks, searches = events()
    write_csv(clicks, tmp_path / "plain" / "clicks.csv")
    write_csv(searches, tmp_path / "plain" / "searches.csv")
    return csv_log.read_csv_log(str(tmp_path / "plain"))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("part-{:05d}-of-00003.csv", write_csv),
        ("day={}/x.csv.gz", write_csv),
        ("{}.csv.zst", write_csv),
        ("day={}/hour=1/part-0.snappy.parquet", write_parquet),
    ],
)
def test_shards_say_the_same_as_one_file(tmp_path, plain, name, write):
    clicks, searches = events()
    raw = tmp_path / "raw"
    # The last rows first, in shards of different sizes.
    for number, rows in enumerate((slice(300, None), slice(0, 7), slice(7, 300))):
        write(clicks[rows], raw / "clicks" / name.format(number))
        write(searches[rows], raw / "searches" / name.format(number))
    (raw / "clicks" / "_SUCCESS").touch()
    (raw / "clicks" / ".hidden").mkdir()
    log = csv_log.read_csv_log(str(raw))
    assert log.hash == plain.hash and len(csv_log.raw_files(str(raw))) == 6


@pytest.mark.parametrize("suffix", ["csv.gz", "csv.zst"])
def test_packed_files(tmp_path, plain, suffix):
    clicks, searches = events()
    write_csv(clicks, tmp_path / "raw" / f"clicks.{suffix}")
    write_csv(searches, tmp_path / "raw" / f"searches.{suffix}")
    log, _ = prepare.prepare_log("csv_log", str(tmp_path / "raw"), str(tmp_path / "cache"), {})
    assert log.hash == plain.hash


def test_a_column_may_be_the_name_of_folders(tmp_path, plain):
    clicks, searches = events()
    raw = tmp_path / "raw"
    for user, rows in clicks.groupby("user"):
        write_parquet(rows.drop(columns="user"), raw / "clicks" / f"user_id={user}" / "0.parquet")
    write_parquet(searches, raw / "searches.parquet")
    assert csv_log.read_csv_log(str(raw), columns="clicks.user=user_id").hash == plain.hash


def test_row_groups_of_any_size_and_order_of_columns(tmp_path, plain):
    clicks, searches = events()
    raw = tmp_path / "raw"
    raw.mkdir()
    table = pa.table(clicks[["time", "item", "user"]].assign(more=1.5).reset_index(drop=True))
    table = table.set_column(2, "user", table["user"].combine_chunks().dictionary_encode())
    pq.write_table(table, raw / "clicks.parquet", row_group_size=17, compression="none")
    write_parquet(searches.assign(clicked_items=searches.clicked_items.str.split()),
                  raw / "searches.parquet")  # fmt: skip
    assert csv_log.read_csv_log(str(raw)).hash == plain.hash


def test_an_empty_shard_is_legal_and_so_are_two(tmp_path, plain):
    clicks, searches = events()
    raw = tmp_path / "raw"
    for number, rows in enumerate((slice(0, 0), slice(None), slice(0, 0))):
        write_csv(clicks[rows], raw / "clicks" / f"{number}.csv")
        write_parquet(searches[rows], raw / "searches" / f"{number}.parquet")
    assert csv_log.read_csv_log(str(raw)).hash == plain.hash


def test_pandas_reads_on_where_arrow_meets_a_short_row(tmp_path):
    rows = [f"u{n},{'x' * 200},{n}" for n in range(100_000)]
    rows[90_000] = "u90000,y,90000,"
    path = tmp_path / "clicks.csv"
    path.write_text("user,item,time,note\n" + ",\n".join(rows[:90_000]) + ",\n")
    with path.open("a") as file:
        file.write("\n".join(rows[90_000:]) + "\n")  # rows from here on lack the note
    shard = csv_shards.Shard(path)
    blocks = list(csv_shards.read_blocks(shard, ["user", "time"], block_rows=1000))
    assert len(blocks) > 1, "the first of them by Arrow"
    users = [user for block in blocks for user in block.columns["user"].to_pylist()]
    assert users == [f"u{n}" for n in range(100_000)]
    assert [b.first_row for b in blocks] == np.cumsum([1, *map(len, blocks)])[:-1].tolist()


def shard_folder(tmp_path, write=write_parquet, suffix="parquet", changed=lambda frame: frame):
    """Three shards of clicks, of which the last is changed."""
    clicks, searches = events()
    raw = tmp_path / "raw"
    for number in range(3):
        part = clicks[number * 100 : number * 100 + 100]
        path = raw / "clicks" / f"part-{number}-of-3.{suffix}"
        write(changed(part) if number == 2 else part, path)
    write_parquet(searches, raw / "searches.parquet")
    return raw


def refused(raw, found, **options):
    with pytest.raises(UserError, match=found) as error:
        csv_log.read_csv_log(str(raw), **options)
    assert "\n" not in str(error.value)


def test_a_missing_shard(tmp_path):
    raw = shard_folder(tmp_path)
    (raw / "clicks" / "part-1-of-3.parquet").unlink()
    refused(raw, r"expected 3 shards .*part-\*-of-\*\.parquet in .*, found 2: number 1 is missing")


@pytest.mark.parametrize(
    ("write", "suffix"),
    [(write_parquet, "parquet"), (write_csv, "csv.gz"), (write_csv, "csv.zst")],
)
def test_a_shard_that_is_cut(tmp_path, write, suffix):
    raw = shard_folder(tmp_path, write, suffix)
    path = raw / "clicks" / f"part-2-of-3.{suffix}"
    path.write_bytes(path.read_bytes()[:-20])
    refused(raw, rf"expected a whole \w+ file at .*part-2-of-3\.{suffix}, found one that cannot be")
    with pytest.raises(UserError, match=r"expected a whole \w+ file at .*part-2-of-3") as error:
        prepare.prepare_into("csv_log", str(raw), str(tmp_path / "made"), {})
    assert "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["raw"]


def test_a_row_that_is_cut_is_named_with_its_shard(tmp_path):
    raw = shard_folder(tmp_path, write_csv, "csv")
    path = raw / "clicks" / "part-2-of-3.csv"
    path.write_bytes(path.read_bytes().rpartition(b",")[0] + b"\n")
    refused(raw, r"expected column time in every row of .*part-2-of-3\.csv, found row 100 without")


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        (
            lambda frame: frame.rename(columns={"item": "thing"}),
            r"of one schema, found column item in .*part-0-of-3\.parquet and not in .*part-2-of-3",
        ),
        (
            lambda frame: frame.assign(search_session=""),
            r"found column search_session in .*part-2-of-3.* and not in .*part-0-of-3",
        ),
        (
            lambda frame: frame.assign(item=range(len(frame))),
            r"column item as text in .*part-0-of-3.* and as whole numbers in .*part-2-of-3",
        ),
        (
            lambda frame: frame.assign(time=pd.to_datetime(frame.time, unit="s")),
            r"column time as whole numbers in .*part-0-of-3.* and as dates in .*part-2-of-3",
        ),
        (
            lambda frame: frame.assign(time=frame.time * 1000),
            r"of all shards in one unit, found seconds in .*part-0-of-3.* and milliseconds in .*",
        ),
        (
            lambda frame: frame.assign(user="a b"),
            r"expected ids of .*part-2-of-3\.parquet, column user, .*, found 'a b' in row 1;",
        ),
    ],
)
def test_a_shard_of_another_kind(tmp_path, changed, found):
    refused(shard_folder(tmp_path, changed=changed), found)


def test_dates_in_one_shard_and_numbers_in_another(tmp_path):
    def changed(frame):
        return frame.assign(time="2024-01-02T03:04:05Z")

    raw = shard_folder(tmp_path, write_csv, "csv", changed)
    refused(raw, r"one kind in all shards, found dates in .*part-2-of-3.* and numbers in .*part-0")


@pytest.mark.parametrize("table", ["clicks", "searches"])
def test_the_same_shard_twice_whatever_its_order_and_packing(tmp_path, table):
    frames = dict(zip(("clicks", "searches"), events(), strict=True))
    raw = tmp_path / "raw"
    for name, frame in frames.items():
        write_csv(frame[:50], raw / name / "a.csv")
        write_csv(frame[50:], raw / name / "b.csv")
    write_csv(frames[table][50:][::-1], raw / table / "c.csv.gz")
    rows = len(frames[table][50:])
    refused(
        raw,
        rf"expected each shard once, found the same {rows} rows in .*b\.csv and .*c\.csv\.gz; rem",
        columns="session=",
    )
    if table == "searches":
        refused(raw, r"one row a session in .*c\.csv\.gz, found user .* again in row \d+;|once")


def test_folders_that_hold_something_else(tmp_path):
    raw = shard_folder(tmp_path)
    (raw / "clicks" / "notes.txt").touch()
    refused(raw, r"expected shards in \.csv, .*\.parquet in .*, found notes\.txt; move it away")
    (raw / "clicks" / "notes.txt").rename(raw / "clicks" / "more.csv")
    refused(raw, "expected all shards in .* as CSV or all as parquet, found")
    for path in (raw / "clicks").iterdir():
        path.unlink()
    refused(raw, "expected shards of clicks in .*, found none")
    (raw / "clicks").rmdir()
    refused(raw, "expected clicks.csv or clicks.parquet in .*, found neither, and no folder clicks")


def test_a_packed_file_that_unpacks_to_gigabytes_is_not_read(tmp_path):
    raw = shard_folder(tmp_path, write_csv, "csv.zst")
    path = raw / "clicks" / "part-2-of-3.csv.zst"
    with pa.output_stream(str(path), compression="zstd") as file:
        file.write(b"user,item,time\n")
        for _ in range(25):
            file.write(b"u,i,1\n" * 2_000_000)
    with pytest.raises(UserError, match=r"expected at most .* bytes unpacked in .*part-2-of-3"):
        prepare.prepare_into("csv_log", str(raw), str(tmp_path / "made"), {})


def test_mistakes_end_the_program_in_one_line(tmp_path):
    raw = shard_folder(tmp_path, changed=lambda frame: frame.assign(time=frame.time * 1000))
    command = [sys.executable, "-m", "launch.prepare_data", "--dataset=csv_log"]
    done = subprocess.run(
        [*command, f"--raw_dir={raw}", f"--data_dir={tmp_path / 'made'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "expected the times of all shards in one unit" in done.stderr.splitlines()[-1]
    assert os.listdir(tmp_path) == ["raw"]
