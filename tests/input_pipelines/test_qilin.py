"""Qilin: generated files with the full schema, by hand, as a log and as TFDS records."""

import csv
import importlib.util
import itertools
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import UserError
from input_pipelines import segmenters, splits
from input_pipelines.data_card import describe
from input_pipelines.log_checks import validate_log
from input_pipelines.prepared_log import load_log, save_log
from input_pipelines.readers import qilin, qilin_files

# Some moment of November 2024, in seconds.
T = 1_732_600_000


def impression(kind, note, position, click, time):
    field = "search_timestamp" if kind == "search" else "request_timestamp"
    other = dict.fromkeys(("like", "collect", "comment", "share"), 0.0)
    page_time = {0: -1.0, 1: float("nan")}.get(int(position or 0) % 3, 4.5)
    shown = dict(note_idx=note, position=position, click=click, page_time=page_time)
    return shown | other | {field: time}


def search(user, query, *impressions):
    details = [impression("search", *i) for i in impressions]
    return dict(user_idx=user, query=query, search_result_details_with_idx=details)


def recommendation(user, *impressions):
    details = [impression("recommendation", *i) for i in impressions]
    return dict(user_idx=user, query="a note", rec_result_details_with_idx=details)


def tables():
    """Four tables, by hand. Impressions are (note, position, click, time)."""
    return {
        "search_train": [
            # Clicks by position 2, 3: notes 8 then 5; 8 is shown, and clicked, twice.
            # 2, 12 and, on the page before it, 11 are not; 12 twice, 4 after the last click.
            search(
                1,
                "Visa申请",
                *((5, 3.0, 1.0, T + 9.0), (8, 2.0, 1.0, T + 4.0), (8, 7.0, 1.0, T)),
                *((12, 5.0, 0.0, T + 4.0), (12, 4.0, 0.0, T + 4.0), (11, 1.0, None, T)),
                *((2, None, 0.0, T), (8, 0.0, 0.0, T), (4, 6.0, 0.0, T + 10.0)),
            ),
            search(3, "", (6, 1.0, 1.0, T + 1.0)),
            search(3, "?!", (6, 1.0, 0.0, T + 2.0)),
        ],
        "search_test": [search(1, "绿茶", (9, 1.0, 0.0, T + 20.0), (5, 2.0, None, T + 25.0))],
        "recommendation_train": [
            # Note 7 repeats: clicked at +3 s and again at +2 s, which counts.
            recommendation(
                1,
                (7, 1, 1, (T + 3) * 1000),
                (4, 2, 0, (T + 3) * 1000 + 1),
                (7, 3, 1, (T + 2) * 1000),
            ),
            recommendation(1, (7, 1, 1, (T + 30) * 1000)),
            recommendation(2, (4, 1, 1, T * 1000 + 500)),
        ],
        "recommendation_test": [
            # Unsorted: this is user 1's first click.
            recommendation(1, (2, 1, 1, (T - 5) * 1000), (11, 2, 0, (T - 5) * 1000)),
            recommendation(4, (12, 1, 0, T * 1000)),
        ],
    }


def write(folder, rows_of, files=1):
    for number, (name, rows) in enumerate(rows_of.items()):
        kind, _ = name.split("_")
        (folder / name).mkdir(parents=True)
        for row_number, row in enumerate(rows):
            row["search_idx" if kind == "search" else "request_idx"] = 100 * number + row_number
            row |= dict(session_idx=number, recent_clicked_note_idxs=[1, 2])
            if kind == "search":
                row["query_from_type"] = 1.0
        for part in range(files):
            table = pa.Table.from_pylist(rows).take(np.arange(part, len(rows), files))
            pq.write_table(table, folder / name / f"train-{part:05d}-of-{files:05d}.parquet")
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "raw", tables())


def events_of(log):
    """{user: (clicks, searches)} in the log's order, in the source's names."""
    by_user = {}
    for user in range(1, log.num_users + 1):
        clicks = [
            (str(log.item_ids[log.rec_items[r]]), int(log.rec_times[r]) - T * 1000)
            for r in range(log.rec_offsets[user], log.rec_offsets[user + 1])
        ]
        searches = [
            (
                " ".join(log.words[log.word_ids[slice(*log.word_offsets[s : s + 2])]]),
                log.item_ids[log.click_items[slice(*log.click_offsets[s : s + 2])]].tolist(),
                int(log.search_times[s]) - T * 1000,
                log.item_ids[log.unclicked(s)].tolist(),
            )
            for s in range(log.search_offsets[user], log.search_offsets[user + 1])
        ]
        by_user[str(log.user_ids[user])] = clicks, searches
    return by_user


def check_by_hand(log):
    validate_log(log)
    assert events_of(log) == {
        "1": (
            [("2", -5000), ("7", 2000), ("7", 30_000)],
            [
                ("visa 申 请", ["8", "5"], 9000, ["11", "12", "2"]),
                # Note 5 came on a later page.
                ("绿 茶", [], 20_000, ["9"]),
            ],
        ),
        "2": ([("4", 500)], []),
        # A query without words stays for its click; without either it is no event.
        "3": ([], [("", ["6"], 1000, [])]),
    }
    # Everything shown has a row, also to users without events.
    assert sorted(map(int, log.item_ids[1:])) == [2, 4, 5, 6, 7, 8, 9, 11, 12]
    assert not log.is_sample


def test_generated_files_by_hand(folder, capfd):
    before = sorted(pathlib.Path(folder).rglob("*"))
    log = qilin.read_qilin(folder, segmenter="characters")
    check_by_hand(log)
    assert sorted(pathlib.Path(folder).rglob("*")) == before
    assert capfd.readouterr().out == ""
    # Another one needs another version of the reader: what was prepared earlier is another log.
    assert log.hash == "dcf4d46f088f53d2"
    parts = splits.split_log(log, "leave_one_out")
    splits.check_leakage(log, parts)
    # User 1: the last click tests, and both searches are earlier.
    assert parts.test.user.tolist() == [1] and parts.test.search_end.tolist() == [2]
    # The first search was asked at 0 s: the click at 2 s came before its last click, but after it.
    first = int(np.flatnonzero(log.search_times == (T + 9) * 1000)[0])
    assert log.asked_at(first) == T * 1000 and log.asked_at(first + 1) == (T + 20) * 1000
    rec_end, search_end = splits.search_history_ends(log, np.array([first, first + 1]))
    start = log.rec_offsets[1]
    assert (rec_end - start).tolist() == [1, 2] and (search_end - first).tolist() == [0, 1]
    # The click before, at 2 s, sees neither: the first search's last click came at 9 s.
    assert parts.validation.search_end.tolist() == [0]


def records_of(folder, out):
    """Builds the records of a folder as `tfds build` does; returns {user: record}."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="needs TensorFlow Datasets")
    import tensorflow as tf

    # Batches are streamed by TensorFlow later in the same process: it must still let them.
    tf.config.set_visible_devices([], "GPU")
    # The program `tfds` itself starts only where apache-beam and mlcroissant are installed.
    command = importlib.import_module("tensorflow_datasets.scripts.cli.build")
    options = importlib.import_module("tensorflow_datasets.scripts.cli.cli_utils")
    paths = options.PathOptions(data_dir=pathlib.Path(out), manual_dir=pathlib.Path(folder))
    file = importlib.util.find_spec("input_pipelines.readers.qilin_builder").origin
    command.Args(positional_datasets=[file], paths=paths).execute()
    builder = tfds.builder_from_directory(next(pathlib.Path(out).glob("qilin/*")))
    dataset = builder.as_dataset(split="users")
    return {str(record["user"]): record for record in tfds.as_numpy(dataset)}


def notes_of(record, kind):
    """The notes of each of a record's searches, as text."""
    ends = [0, *np.cumsum(record[f"search_{kind}_count"])]
    notes = record[f"search_{kind}_item"].astype(str).tolist()
    assert len(notes) == ends[-1]
    return [notes[a:b] for a, b in itertools.pairwise(ends)]


def check_records(records, log):
    """Holds the records' events to those of the log of the same folder."""
    split_query, events, shown = segmenters.segmenter("characters"), {}, set()
    for user, record in records.items():
        clicked, unclicked = (notes_of(record, kind) for kind in ("click", "unclicked"))
        words = [" ".join(split_query(query.decode())) for query in record["search_query"]]
        times = (record["search_time"] - T * 1000).tolist()
        searches = [s for s in zip(words, clicked, times, unclicked, strict=True) if s[0] or s[1]]
        clicks = zip(
            record["click_item"].astype(str).tolist(),
            (record["click_time"] - T * 1000).tolist(),
            strict=True,
        )
        events[user] = sorted(clicks), sorted(searches)
        shown |= set(record["shown_item"].astype(str).tolist())
    of_log = {user: tuple(map(sorted, both)) for user, both in events_of(log).items()}
    assert {user: both for user, both in events.items() if both != ([], [])} == of_log
    assert shown == set(log.item_ids.tolist()) - {""}


def test_tfds_build_gives_one_record_a_user_with_the_events_of_the_log(folder, tmp_path):
    records = records_of(folder, tmp_path / "tfds")
    assert sorted(records) == ["1", "2", "3", "4"]
    check_records(records, qilin.read_qilin(folder))
    first = records["1"]
    assert [q.decode() for q in first["search_query"]] == ["Visa申请", "绿茶"]
    assert first["search_click_count"].tolist() == [2, 0]
    assert first["search_click_item"].tolist() == [8, 5]
    assert first["search_begin"].tolist() == [T * 1000, (T + 20) * 1000]
    assert first["search_unclicked_count"].tolist() == [3, 1]
    assert first["search_unclicked_item"].tolist() == [11, 12, 2, 9]
    assert sorted(first["click_time"].tolist()) == [(T + s) * 1000 for s in (-5, 2, 30)]
    assert records["4"]["click_item"].tolist() == [] and records["4"]["shown_item"].tolist() == [12]


def test_tfds_build_ends_at_a_malformed_file_without_records(tmp_path):
    rows = tables()
    rows["search_train"][0]["user_idx"] = -1
    folder = write(tmp_path / "raw", rows)
    with pytest.raises(UserError, match=r"user_idx of .* to be 0 or more, found -1") as error:
        records_of(folder, tmp_path / "tfds")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "tfds").rglob("*.tfrecord*"))


def test_reading_imports_no_tensorflow(folder):
    code = (
        "import sys; from input_pipelines import prepare; "
        "from input_pipelines.readers import qilin; "
        f"qilin.read_qilin({folder!r}); assert 'tensorflow' not in sys.modules"
    )
    root = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_several_files_and_small_batches_change_nothing(folder, tmp_path):
    expected = qilin.read_qilin(folder).hash
    many = write(tmp_path / "many", tables(), files=2)
    assert len(qilin_files.table_files(many, "search", "train")) == 2
    assert qilin.read_qilin(many, batch_rows=1).hash == expected


def test_csv_says_the_same_as_parquet(folder, tmp_path):
    for name, rows in tables().items():
        with open(tmp_path / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            columns = [c for c in rows[0]]
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            for row in rows:
                # As numpy prints a list of dicts.
                cells = {c: v if not isinstance(v, list) else printed(v) for c, v in row.items()}
                writer.writerow(cells)
    log = qilin.read_qilin(str(tmp_path))
    assert log.hash == qilin.read_qilin(folder).hash


def printed(dicts):
    return "[" + "\n ".join(str(d | {"note_id": "6{,}f"}) for d in dicts) + "]"


def test_users_have_the_profiles_of_their_table(folder, tmp_path):
    assert qilin.read_qilin(folder).profile_bytes is None
    columns = ("user_idx", "gender", "platform", "age", "location", "dense_feat1")
    rows = [
        (2, "female", "iOS", "23-25", "Hong Kong  Tsuen Wan", 1.0),
        (1, "male", None, "unknown", "", 2.0),
        (3, None, None, None, None, None),
        (77, "male", "iOS", "40+", "elsewhere", 3.0),
    ]
    table = [dict(zip(columns, row, strict=True)) for row in rows]
    (pathlib.Path(folder) / "user_feat").mkdir()
    path = pathlib.Path(folder) / "user_feat" / "0.parquet"
    pq.write_table(pa.Table.from_pylist(table), path)
    assert path in qilin_files.raw_files(folder)
    log = qilin.read_qilin(folder)
    validate_log(log)
    assert log.user_ids.tolist() == ["", "1", "2", "3"]
    everything = {"gender": "female", "platform": "iOS", "age": "23-25"}
    everything["location"] = "Hong Kong Tsuen Wan"
    expected = [{}, {"gender": "male"}, everything, {}]
    assert [log.profile(user) for user in range(4)] == expected
    save_log(log, str(tmp_path / "log"))
    assert load_log(str(tmp_path / "log")).profile(2) == everything
    assert describe(log)["users_with_profile"] == 2
    # Numbers in place of words: whole ones without a point, NaN is not known, text is as it is.
    numbers = {
        "user_idx": [1, 2, 3],
        "age": [23.0, float("nan"), None],
        "gender": [b"male", None, b""],
    }
    numbers |= {"platform": ["nan", " iOS ", None], "location": pa.array([7, None, 7], pa.int64())}
    pq.write_table(pa.table(numbers), path)
    log = qilin.read_qilin(folder)
    told = {"gender": "male", "platform": "nan", "age": "23", "location": "7"}
    assert [log.profile(user) for user in (1, 2, 3)] == [
        told,
        {"platform": "iOS"},
        {"location": "7"},
    ]
    pq.write_table(pa.table(numbers | {"age": [None, True, None]}), path)
    with pytest.raises(UserError, match=r"expected text in column age of .* found True in row 2"):
        qilin.read_qilin(folder)
    # A table of users without one of the columns is another table.
    pq.write_table(pa.Table.from_pylist(table).drop_columns(["age"]), path)
    with pytest.raises(UserError, match=r"expected column age in .*user_feat"):
        qilin.read_qilin(folder)


def test_the_sample_mark(folder, tmp_path):
    (pathlib.Path(folder) / "SAMPLE").write_text("")
    assert qilin.read_qilin(folder).is_sample


def test_events_without_a_time_are_dropped(tmp_path):
    rows = tables()
    rows["recommendation_train"][2] = recommendation(2, (4, 1, 1, None), (5, 2, 1, T * 1000))
    rows["search_test"] = [search(1, "绿茶", (9, 1.0, 1.0, None)), search(1, "空")]
    log = qilin.read_qilin(write(tmp_path / "raw", rows))
    by_user = events_of(log)
    assert by_user["2"] == ([("5", 0)], [])
    assert [s[0] for s in by_user["1"][1]] == ["visa 申 请"]
    assert "4" in log.item_ids  # shown all the same


def remove_column(rows, name, column):
    for row in rows[name]:
        del row[column]


def remove_field(rows, name, column, field):
    for row in rows[name]:
        for details in row[column]:
            del details[field]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda r: remove_column(r, "search_test", "query"), r"column query in .*search_test"),
        (
            lambda r: remove_column(r, "recommendation_train", "rec_result_details_with_idx"),
            "column rec_result_details_with_idx in .*recommendation_train",
        ),
        (
            lambda r: remove_field(
                r, "search_train", "search_result_details_with_idx", "search_timestamp"
            ),
            "column search_result_details_with_idx.search_timestamp in .*search_train",
        ),
        (
            lambda r: r["recommendation_test"][1].update(user_idx=-7),
            "user_idx of .*recommendation_test.* to be 0 or more, found -7",
        ),
        (
            lambda r: r["search_test"].append(search(1, "x", (-2, 1.0, 0.0, T))),
            "note_idx of .*search_test.* to be 0 or more, found -2",
        ),
        (
            lambda r: r["search_test"].append(search(None, "x", (2, 1.0, 0.0, T))),
            "user_idx of .*search_test.* in every row, found 1 missing",
        ),
        (
            lambda r: [row.update(user_idx=row["user_idx"] + 0.5) for row in r["search_train"]],
            "whole numbers as user_idx",
        ),
        (
            lambda r: [
                row.update(rec_result_details_with_idx=3) for row in r["recommendation_test"]
            ],
            "rec_result_details_with_idx of .* to be a list of structs, found int64",
        ),
    ],
)
def test_malformed_tables_end_in_one_line(tmp_path, change, found):
    rows = tables()
    change(rows)
    folder = write(tmp_path / "raw", rows)
    with pytest.raises(UserError, match=found) as error:
        qilin.read_events(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(tables()))
def test_a_missing_table_is_named_before_anything_is_read(folder, name):
    shutil.rmtree(pathlib.Path(folder) / name)
    for path in pathlib.Path(folder).rglob("*.parquet"):
        path.write_bytes(b"")  # whoever reads one of these says that it is not whole
    with pytest.raises(UserError, match=rf"expected {name}/\*.parquet or {name}.csv"):
        qilin.read_qilin(folder)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated_parquet(folder, keep):
    path = next((pathlib.Path(folder) / "search_train").iterdir())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UserError, match=r"a whole parquet file at .*search_train") as error:
        qilin.read_events(folder)
    assert "\n" not in str(error.value)


def test_a_damaged_page_is_found_where_the_footer_is_whole(folder):
    path = next((pathlib.Path(folder) / "search_train").iterdir())
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 3] = bytes(len(content) // 3 - 4)
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"a whole parquet file at .*search_train"):
        qilin.read_events(folder)


def test_times_of_different_units_are_refused(tmp_path):
    rows = tables()
    for part in ("train", "test"):
        for row in rows[f"recommendation_{part}"]:
            for details in row["rec_result_details_with_idx"]:
                details["request_timestamp"] //= 1000
    with pytest.raises(UserError, match="request_timestamp in milliseconds and search_timestamp"):
        qilin.read_events(write(tmp_path / "raw", rows))


def test_counts_of_the_full_set():
    full = dict(qilin.FULL_ROWS)
    assert full == {
        "search_train": 44_024,
        "search_test": 6_192,
        "recommendation_train": 83_437,
        "recommendation_test": 11_115,
    }
    assert qilin.check_counts(full, 15_482, "D")
    # Neither the users nor any table is the full set's: a part of it, and never called full.
    assert not qilin.check_counts(dict.fromkeys(full, 10), 33, "D")
    with pytest.raises(UserError, match=r"found search_test 6191 \(of 6192\); download"):
        qilin.check_counts(full | {"search_test": 6191}, 15_482, "D")
    with pytest.raises(UserError, match=r"found users 15000 \(of 15482\)"):
        qilin.check_counts(full, 15_000, "D")
    with pytest.raises(UserError, match=r"search_train 1 .*recommendation_test 1 "):
        qilin.check_counts(dict.fromkeys(full, 1), 15_482, "D")
