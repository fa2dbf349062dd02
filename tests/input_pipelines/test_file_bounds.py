"""Raw files that unpack to much more than they are: one line, at once, in little memory."""

import ast
import gzip
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import UserError
from core.text_lines import LONGEST_LINE
from input_pipelines import file_bounds
from input_pipelines.readers import amazon_beauty, amazon_raw, csv_log

ROOT = pathlib.Path(__file__).parents[2]
# Reads each of the folders by a dataset's name, in one process; prints the message and the memory
# that it took, in MB.
READING = """
import resource, sys
from core.errors import UserError
from input_pipelines import prepare
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
for argument in sys.argv[1:]:
    name, folder = argument.split("=", 1)
    before = peak()
    try:
        prepare.prepare_into(name, folder, folder + "-prepared", {})
        print("read", peak() - before)
    except UserError as error:
        print(error, peak() - before)
"""


def zeros(path, size, before=b""):
    """A file that has a hole of zeros: no newline, no space on the disk."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        file.write(before)
        file.truncate(size)


def csv_folder(folder, clicks=None):
    folder.mkdir()
    (folder / "clicks.csv").write_text("user,item,time\nu,a,1\nu,b,2\nu,c,3\n")
    (folder / "searches.csv").write_text("user,session,time,query,clicked_items\nu,s,1,word,\n")
    if clicks is not None:
        (folder / "clicks.csv").unlink()
        pq.write_table(clicks, folder / "clicks.parquet")
    return folder


def clicks_of(user):
    rows = np.zeros(len(user), np.int32)
    return pa.table({"user": user, "item": pa.array(rows), "time": pa.array(rows)})


def named_often(text, times):
    """A column that names one text `times` times."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(times, np.int32)), pa.array([text]))


def amazon_folder(folder, **changed):
    folder.mkdir()
    contents = {
        "reviews_X_5.json.gz": b'{"reviewerID": "u", "asin": "a", "unixReviewTime": 1}\n',
        "meta_X.json.gz": b'{"asin": "a", "title": "t"}\n',
        "query_text.txt.gz": b"word\n",
        "train.qrels.gz": b"u_0 0 a 1\n",
        "test.qrels.gz": b"",
    }
    for name, content in contents.items():
        packed = changed.get(name.split(".")[0].split("_")[0], gzip.compress(content))
        (folder / name).write_bytes(packed)
    return folder


BOMBS = {
    "csv_log, a line of zeros": "bytes in .*clicks.csv, found a longer one, line 2",
    "kuaisar, a line of gigabytes": "bytes in .*src_inter.csv, found a longer one, line 1",
    "amazon_raw, a line of gigabytes": "characters in .*meta_X.json.gz, found a longer one, line 1",
    "amazon_beauty, a line of gigabytes": "in .*items.jsonl, found a longer one, line 1",
    "csv_log, a column of one value": "values a column in .*clicks.parquet, .* found 2,000,000",
    "csv_log, one text many times": "bytes of text in .*clicks.parquet",
    "trivago, one text many times": "bytes of text in .*x.parquet",
    "qilin, a list of millions": "values a column in .*search_train.*, found 2,000,000",
    "csv_log, a text of gigabytes": "bytes unpacked in .*clicks.parquet",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What reading says of each bomb, and the MB that it took."""
    root = tmp_path_factory.mktemp("bombs")
    folders = {name: root / str(number) for number, name in enumerate(BOMBS)}
    names = iter(folders.values())
    zeros(csv_folder(next(names)) / "clicks.csv", 2**28, b"user,item,time\n")
    folder = next(names)
    for name in ("rec_inter", "src_inter", "item_features"):
        zeros(folder / f"{name}.csv", 2**28 if name == "src_inter" else 0)
    # Members one after the other are one file.
    amazon_folder(next(names), meta=gzip.compress(bytes(2**24)) * 192)
    folder = next(names)
    zeros(folder / "items.jsonl", 2**28)
    for name in ("sequences.tsv", "queries.tsv"):
        (folder / name).write_text("0\t0\n")
    csv_folder(next(names), clicks_of(pa.array(np.zeros(2_000_000, np.int8))))
    csv_folder(next(names), clicks_of(named_often("u" * 1_000_000, 100_000)))
    folder = next(names)
    folder.mkdir()
    columns = {
        name: pa.array(["1"] * 100_000)
        for name in (
            "user_id",
            "session_id",
            "timestamp",
            "step",
            "action_type",
            "reference",
            "city",
            "impressions",
            "prices",
        )
    }
    columns["city"] = named_often("x" * 1_000_000, 100_000)
    pq.write_table(pa.table(columns), folder / "x.parquet")
    folder = next(names)
    impressions = pa.StructArray.from_arrays(
        [pa.array(np.zeros(2_000_000, np.int8))] * 4,
        ["note_idx", "position", "click", "search_timestamp"],
    )
    lists = pa.ListArray.from_arrays(pa.array([0, 2_000_000], pa.int32()), impressions)
    table = pa.table({"user_idx": [1], "query": ["q"], "search_result_details_with_idx": lists})
    for part in ("search_train", "search_test", "recommendation_train", "recommendation_test"):
        (folder / part).mkdir(parents=True)
        pq.write_table(table, folder / part / "0.parquet")
    csv_folder(next(names)).joinpath("clicks.csv").unlink()
    long = pa.array(["x" * 80_000_000])
    pq.write_table(clicks_of(long), folders["csv_log, a text of gigabytes"] / "clicks.parquet",
                   compression="zstd")  # fmt: skip
    arguments = [f"{name.split(',')[0]}={folder}" for name, folder in folders.items()]
    done = subprocess.run(
        [sys.executable, "-c", READING, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done
    lines = done.stdout.splitlines()
    assert len(lines) == len(BOMBS), done
    return {name: line.rsplit(" ", 1) for name, line in zip(BOMBS, lines, strict=True)}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_in_one_line_and_little_memory(told, bomb):
    message, megabytes = told[bomb]
    assert re.search(BOMBS[bomb], message), message
    assert int(megabytes) < 256


def test_what_is_published_is_within_the_bounds(tmp_path):
    """Text that repeats, short lists and columns of one value, as logs have them."""
    users = pa.array([f"user-{row // 50:09d}" for row in range(200_000)])
    path = tmp_path / "x.parquet"
    clicks = clicks_of(users).append_column("items", pa.array([["a", "b"]] * 200_000))
    for compression in ("snappy", "zstd"):
        pq.write_table(clicks, path, compression=compression)
        with file_bounds.open_parquet(path, ["user", "items"]) as file:
            assert file.metadata.num_rows == 200_000
    files = []
    for content in (b"", b"\n" * 10, b"a" * LONGEST_LINE + b"\n" + b"b" * LONGEST_LINE):
        files.append(tmp_path / f"{len(content)}.csv")
        files[-1].write_bytes(content)
    file_bounds.check_lines(files)
    files[0].write_bytes(b"a\n" * 3 + b"b" * (LONGEST_LINE + 1) + b"\n")
    with pytest.raises(UserError, match="a longer one, line 4"):
        file_bounds.check_lines(files)


DEEP = {
    "lists": "[" * 100_000,
    "dicts": '{"item": ' * 100_000,
    "digits": '{"item": ' + "1" * 5_000 + ', "query_ids": []}',
    "minus": "-" * 100_000 + "1",
    "sums": "1" + "+1" * 100_000,
    "brackets": "(" * 100_000 + ")" * 100_000,
    "calls": "__import__('os').system('false')",
    "powers": "9**9**9",
    "attributes": "a" + ".a" * 50_000,
    "ifs": "1 if " * 50_000 + "1",
    "strings": "'a' " * 100_000,
}


@pytest.mark.parametrize("line", DEEP)
def test_deep_lines_end_in_one_line(tmp_path, line):
    folder = tmp_path / "beauty"
    folder.mkdir()
    (folder / "queries.tsv").write_text("0\tword\n")
    (folder / "sequences.tsv").write_text("0\t0\n")
    (folder / "items.jsonl").write_text(DEEP[line] + "\n")
    with pytest.raises(UserError, match=r"in line 1 of .*items\.jsonl") as error:
        amazon_beauty.read_amazon_beauty(str(folder))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    folder = amazon_folder(tmp_path / "raw", meta=gzip.compress(DEEP[line].encode()))
    with pytest.raises(UserError, match=r"in line 1 of .*meta_X\.json\.gz") as error:
        amazon_raw.read_amazon_raw(str(folder))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_long_literal_is_not_parsed(tmp_path):
    literal = "{'asin': 'a', 'title': '" + "x" * 2**20 + "'}"
    assert ast.literal_eval(literal)["asin"] == "a"
    folder = amazon_folder(tmp_path / "raw", meta=gzip.compress(literal.encode()))
    with pytest.raises(UserError, match=r"a dict with asin.* in line 1 of .*meta"):
        amazon_raw.read_amazon_raw(str(folder))
    as_json = json.dumps({"asin": "a", "title": "t" * 2**22})
    folder = amazon_folder(tmp_path / "json", meta=gzip.compress(as_json.encode()))
    assert amazon_raw.read_amazon_raw(str(folder)).num_items == 1


def test_parquet_that_is_none(tmp_path):
    folder = csv_folder(tmp_path / "x", clicks_of(pa.array(["u"])))
    path = folder / "clicks.parquet"
    content = path.read_bytes()
    footer = content[:-8] + (2**31 - 1).to_bytes(4, "little") + b"PAR1"
    for wrong in (b"", b"PAR1", content[:-3], content[100:], footer, b"PAR1" * 4):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match="expected a whole parquet file at") as error:
            csv_log.read_csv_log(str(folder))
        assert "\n" not in str(error.value)
