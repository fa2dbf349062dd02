"""KuaiSAR: its traps by hand, and every malformed file."""

import dataclasses

import kuaisar_files as files
import numpy as np
import pytest

from core.errors import UserError
from input_pipelines import prepare
from input_pipelines.log import RawEvents, build_log
from input_pipelines.log_checks import validate_log
from input_pipelines.readers import csv_blocks, kuaisar
from input_pipelines.sample import kuaisar_format
from input_pipelines.splits import check_leakage, split_log


def clicks_of(log, name):
    user = log.user_ids.tolist().index(name)
    rows = range(log.rec_offsets[user], log.rec_offsets[user + 1])
    return [(int(log.rec_times[r]), str(log.item_ids[log.rec_items[r]])) for r in rows]


def searches_of(log, name):
    user = log.user_ids.tolist().index(name)
    return [
        (
            int(log.search_times[s]),
            log.words[log.word_ids[log.word_offsets[s] : log.word_offsets[s + 1]]].tolist(),
            log.item_ids[log.click_items[log.click_offsets[s] : log.click_offsets[s + 1]]].tolist(),
        )
        for s in range(log.search_offsets[user], log.search_offsets[user + 1])
    ]


@pytest.fixture
def folder(tmp_path):
    return files.write(tmp_path / "raw")


def test_the_log_by_hand(folder):
    log = kuaisar.read_kuaisar(str(folder))
    validate_log(log)
    assert log.user_ids.tolist() == ["", "7", "9"] and not log.is_sample
    # Shown, listed, unlisted (99) and non-video (500) items all have rows; 77 is only listed.
    assert log.item_ids.tolist() == ["", "10", "11", "12", "13", "14", "77", "99", "500"]
    clicks = clicks_of(log, "7")
    assert sorted(clicks) == [(1000, "10"), (2000, "11"), (2000, "13"), (3000, "99"), (4000, "14")]
    assert clicks_of(log, "9") == [(1500, "10")]
    assert searches_of(log, "7") == [
        (1500, ["20", "34", "3"], ["11", "500"]),
        (2000, ["5"], []),
        (2500, [], ["14"]),
    ]
    assert searches_of(log, "9") == [(100, ["34", "20"], [])]


def test_history_holds_nothing_of_the_targets_own_batch(folder):
    log = kuaisar.read_kuaisar(str(folder))
    splits = split_log(log, "leave_one_out", min_history=0)
    check_leakage(log, splits)
    rows = [r for r in splits.train.target_row if log.rec_times[r] == 2000]
    assert len(rows) == 2
    for row in rows:
        place = int(np.flatnonzero(splits.train.target_row == row)[0])
        history = range(log.rec_offsets[1], splits.train.rec_end[place])
        assert [log.item_ids[log.rec_items[r]] for r in history] == ["10"]
        # The session at 2000 is not strictly earlier, that at 1500 is.
        assert splits.train.search_end[place] - log.search_offsets[1] == 1


def test_the_order_of_rows_and_duplicates_change_nothing(folder, tmp_path):
    expected = kuaisar.read_kuaisar(str(folder)).hash
    # The order of the results of one session is that of the file: 500 now comes before 11.
    results = files.write(tmp_path / "r", None, [files.SRC[2], *files.SRC[:2], *files.SRC[3:]])
    assert kuaisar.read_kuaisar(str(results)).hash != expected
    moved = files.write(tmp_path / "m", files.REC[::-1], files.SRC[4:] + files.SRC[:4])
    assert kuaisar.read_kuaisar(str(moved)).hash == expected
    twice = files.write(tmp_path / "t", files.REC * 2, files.SRC * 2, files.ITEMS * 2)
    assert kuaisar.read_kuaisar(str(twice)).hash == expected


def test_blocks_change_nothing(tmp_path):
    folder = tmp_path / "raw"
    kuaisar_format.write_kuaisar(str(folder), num_users=4, scale="small", seed=1)
    expected = kuaisar.read_kuaisar(str(folder))
    path, columns = folder / "src_inter.csv", {"keyword": csv_blocks.TEXT}
    assert len(list(csv_blocks.read_blocks(path, columns, block_bytes=5000))) > 5
    assert kuaisar.read_kuaisar(str(folder), block_bytes=5000).hash == expected.hash


def test_numbered_and_named_events_give_the_same_log(folder):
    """The builder for integers against the one for names, up to the order of equal times."""
    log = kuaisar.read_kuaisar(str(folder))
    named = build_log(
        "kuaisar",
        RawEvents(
            click_user=["7"] * 5 + ["9"],
            click_item=["10", "11", "13", "99", "14", "10"],
            click_time=[1000, 2000, 2000, 3000, 4000, 1500],
            search_user=["7", "7", "7", "9"],
            search_time=[1500, 2000, 2500, 100],
            search_words=[["20", "34", "3"], ["5"], [], ["34", "20"]],
            search_clicks=[["11", "500"], [], ["14"], []],
            items=["12", "77"],
        ),
    )
    for user in ("7", "9"):
        assert sorted(clicks_of(named, user)) == sorted(clicks_of(log, user))
        assert searches_of(named, user) == searches_of(log, user)
    assert sorted(named.item_ids) == sorted(log.item_ids)


def test_equal_times_do_not_stand_in_id_order(tmp_path):
    rows = [files.rec_row(1, item, "5.0", 1) for item in range(40)]
    log = kuaisar.read_kuaisar(str(files.write(tmp_path / "raw", rec=rows)))
    order = [int(item) for _, item in clicks_of(log, "1")]
    assert sorted(order) == list(range(40)) and order != sorted(order)


def replaced(rows, number, row):
    return [*rows[: number - 1], row, *rows[number:]]


MANY = [files.rec_row(7, 10 + i, f"{1000 + i}.0", 1) for i in range(3000)]


@pytest.mark.parametrize(
    ("table", "rows", "found"),
    [
        ("rec", replaced(MANY, 2999, files.rec_row(7, "x1", "5.0", 1)), "'x1' in row 2999"),
        (
            "rec",
            replaced(MANY, 2999, files.rec_row(7, 1, "soon", 1)),
            "timestamp.*'soon' in row 29",
        ),
        ("rec", replaced(MANY, 2999, files.rec_row(7, 1, "1.5", 1)), "'1.5' in row 2999"),
        ("rec", replaced(MANY, 2999, files.rec_row(7, -4, "5.0", 1)), "item_id.*'-4' in row 2999"),
        ("rec", replaced(MANY, 2999, files.rec_row("", 1, "5.0", 1)), "user_id.*'' in row 2999"),
        ("rec", replaced(MANY, 2999, "7,1,2"), "12 fields a row .* found 3 in row 2999"),
        ("rec", [*MANY[:2998], MANY[2998][:20]], "12 fields .* in row 2999; the file may be cut"),
        ("rec", [files.rec_row(7, 10, "5.0", 0)], "expected clicks in the log of kuaisar"),
        ("src", [*files.SRC, files.src_row(7, 4, "9.0", "tea", 1, 0)], "keyword .*'tea' in row 9"),
        ("src", [*files.SRC, files.src_row(7, 4, "9.0", "[1, 2", 1, 0)], "'\\[1, 2' in row 9"),
        ("src", [*files.SRC, files.src_row(7, 4, "9.0", "[1,,2]", 1, 0)], "in row 9"),
        ("items", [*files.ITEMS, files.item_row("?")], "item_id .*item_features.csv, found '\\?'"),
    ],
)
def test_malformed_rows_are_named(tmp_path, table, rows, found):
    folder = files.write(tmp_path / "raw", **{table: rows})
    with pytest.raises(UserError, match=found) as error:
        kuaisar.read_kuaisar(str(folder), block_bytes=10_000)  # the odd row is in a late block
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["rec_inter", "src_inter", "item_features"])
def test_missing_columns_and_files(folder, name):
    path = folder / f"{name}.csv"
    path.write_text(path.read_text().replace("item_id", "note", 1))
    with pytest.raises(UserError, match=rf"column item_id in .*{name}.csv, found .*note"):
        kuaisar.read_kuaisar(str(folder))
    path.unlink()
    with pytest.raises(UserError, match=rf"expected {name}.csv in .*no such file"):
        kuaisar.read_kuaisar(str(folder))


def test_an_empty_keyword_cell_is_a_query_without_words(tmp_path):
    rows = [files.src_row(7, 1, "5.0", "", 11, 1), files.src_row(7, 2, "6.0", "[]", 11, 1)]
    log = kuaisar.read_kuaisar(str(files.write(tmp_path / "raw", src=rows)))
    assert searches_of(log, "7") == [(5, [], ["11"]), (6, [], ["11"])]


def test_searches_may_be_a_header_alone(tmp_path):
    log = kuaisar.read_kuaisar(str(files.write(tmp_path / "raw", src=[])))
    validate_log(log)
    assert len(log.search_times) == 0 and len(log.rec_items) == 6


def test_counts_of_the_published_sets():
    for scale, counts in kuaisar.FULL_COUNTS.items():
        assert kuaisar.check_counts(counts, "d") == scale
        for name in counts:
            wrong = counts | {name: counts[name] - 1}
            with pytest.raises(UserError, match=rf"KuaiSAR-{scale} .* found {name} "):
                kuaisar.check_counts(wrong, "d")
    partial = dict.fromkeys(kuaisar.FULL_COUNTS["small"], 5) | {"users": 25_877}
    assert kuaisar.check_counts(partial, "d") is None


def test_made_up_files_have_the_published_counts_in_proportion(tmp_path):
    folder = tmp_path / "raw"
    kuaisar_format.write_kuaisar(str(folder), num_users=26, scale="large", seed=2)
    share = 26 / 25_877
    expected = {n: round(c * share) for n, c in kuaisar.FULL_COUNTS["large"].items()}
    assert kuaisar.read_events(str(folder))[1] == expected
    log = kuaisar.read_kuaisar(str(folder))
    assert log.is_sample
    validate_log(log)
    without = (np.diff(log.click_offsets) == 0).mean()
    assert 0.3 < without < 0.5
    assert {f.name for f in folder.iterdir()} >= {"user_features.csv", "social_network.csv"}


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        # A name that looks right ended in "generator raised StopIteration".
        ("user_id,", "user_id ,", "column user_id in .*rec_inter.csv, found 'user_id ', item_id"),
        ("timestamp,click", "when,liked", "columns timestamp, click in .*rec_inter.csv"),
        ("timestamp,", "click,", "column timestamp in"),
        ("forward", "click", "column click in .*rec_inter.csv once, found it 2 times"),
        (",", ";", "columns user_id, item_id, timestamp, click in"),
    ],
)
def test_a_header_that_lacks_columns_is_one_line(folder, old, new, found):
    path = folder / "rec_inter.csv"
    header, rest = path.read_text().split("\n", 1)
    path.write_text(header.replace(old, new) + "\n" + rest)
    with pytest.raises(UserError, match=found) as error:
        kuaisar.read_kuaisar(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"\x00\x00", b"\xff\xfeu\x00s\x00e\x00"])
def test_a_file_without_a_header_is_one_line(folder, content):
    (folder / "src_inter.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"expected column.* in .*src_inter\.csv, found"):
        kuaisar.read_kuaisar(str(folder))


def test_a_byte_order_mark_changes_nothing(folder):
    expected = kuaisar.read_kuaisar(str(folder)).hash
    for path in folder.glob("*.csv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert kuaisar.read_kuaisar(str(folder)).hash == expected


def test_sessions_with_neither_words_nor_clicks_are_left_out_and_counted(tmp_path):
    nothing = [files.src_row(7, 77, 1000, "[]", 10, 0), files.src_row(9, 78, 2000, "", 10, 0)]
    log = kuaisar.read_kuaisar(str(files.write(tmp_path / "raw", src=[*files.SRC, *nothing])))
    expected = kuaisar.read_kuaisar(str(files.write(tmp_path / "plain")))
    validate_log(log)
    assert log.hash == expected.hash
    before = expected.reading.get("searches_left_out_as_empty", 0)
    assert log.reading["searches_left_out_as_empty"] == before + 2


def test_it_is_prepared_like_any_data_set(folder, tmp_path):
    log, directory = prepare.prepare_log("kuaisar", str(folder), str(tmp_path / "cache"), {})
    assert log.hash == kuaisar.read_kuaisar(str(folder)).hash
    assert dataclasses.asdict(log).keys()
    assert "kuaisar-" in directory
