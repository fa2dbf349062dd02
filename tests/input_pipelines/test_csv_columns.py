"""csv_log with other columns: names, dates, kinds of parquet, and clicks that name their search."""

import datetime
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import UserError
from input_pipelines import prepare, repeated_interactions, splits
from input_pipelines.log_checks import validate_log
from input_pipelines.readers import csv_log

CLICKS = "user,item,time\nu,a,10\nu,b,20\nu,c,30\nv,a,15\n"
SEARCHES = "user,session,time,query,clicked_items\nu,s1,12,tea,b\nv,s1,14,cup,\n"


def write(folder, clicks=CLICKS, searches=SEARCHES, items=None):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("clicks", clicks), ("searches", searches), ("items", items)):
        if text is not None:
            (folder / f"{name}.csv").write_text(text, encoding="utf-8")
    return str(folder)


def parquet(folder, **tables):
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return str(folder)


def test_other_names_and_absent_columns_read_as_the_schema_does(tmp_path):
    renamed = write(
        tmp_path / "renamed",
        CLICKS.replace("user,item,time", "user_id,item_id,timestamp"),
        "asked_at,query,user_id\n12,tea,u\n14,cup,v\n",
    )
    columns = (
        "user=user_id, item=item_id,clicks.time=timestamp,searches.time=asked_at,session=,"
        "clicked_items="
    )
    log = csv_log.read_csv_log(renamed, columns=columns)
    plain = SEARCHES.replace("tea,b", "tea,")
    expected = csv_log.read_csv_log(write(tmp_path / "plain", searches=plain))
    assert log.hash == expected.hash and len(log.search_times) == 2


def test_all_missing_columns_stand_in_one_message_with_what_mends_them(tmp_path):
    raw = write(
        tmp_path / "raw",
        "user_id,item_id,when\nu,a,1\n",
        "user_id,time,query\nu,1,x\n",
        "name\nMug\n",
    )
    with pytest.raises(UserError) as error:
        csv_log.read_csv_log(raw)
    text = str(error.value)
    assert "columns user, item, time in" in text and "found user_id, item_id, when" in text
    assert "columns user, session, clicked_items in" in text
    assert "columns item, title in" in text and "\n" not in text
    added = "user=user_id,clicks.item=item_id,session=,clicked_items=,title="
    assert f"or add {added} to config.data.columns" in text
    assert "--columns of launch.prepare_data" in text


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ("user", "found 'user'"),
        ("users=user_id", "one of user, item, time, .* found 'users=user_id'"),
        ("items.user=u", "found 'items.user=u'"),
        ("item=", "found 'item='"),
        ("user=uid", "columns? uid in .*clicks.csv, found user, item, time"),
        ("search_session=came_from", "column came_from in .*clicks.csv"),
        ("user=item,item=item", None),
    ],
)
def test_mistakes_in_columns_are_one_line(tmp_path, columns, found):
    raw = write(tmp_path / "raw")
    if found is None:  # one column may serve twice, if it is there
        write(tmp_path / "raw", searches=SEARCHES.replace("user", "item"))
        assert csv_log.read_csv_log(raw, columns=columns).num_items == 3
        return
    with pytest.raises(UserError, match=found) as error:
        csv_log.read_csv_log(raw, columns=columns)
    assert "\n" not in str(error.value)


def test_what_mends_a_missing_column_is_told_for_the_file_that_lacks_it(tmp_path):
    raw = write(tmp_path / "raw", CLICKS.replace("user,item", "user_id,item_id"))
    with pytest.raises(
        UserError, match=r"or add clicks\.user=user_id,clicks\.item=item_id to"
    ) as e:
        csv_log.read_csv_log(raw)
    columns = str(e.value).partition("or add ")[2].partition(" to ")[0]
    assert csv_log.read_csv_log(raw, columns=columns).num_items == 3


def test_a_column_that_stands_twice_is_refused(tmp_path):
    raw = write(tmp_path / "raw", "user,item,time,user\nu,a,1,w\n")
    with pytest.raises(UserError, match=r"column user in .*clicks.csv once, found it 2 times"):
        csv_log.read_csv_log(raw)


def test_dates_become_milliseconds_in_csv_and_parquet(tmp_path):
    clicks = "user,item,time\nu,a,2024-01-02T03:04:05Z\nu,b,2024-01-02 05:04:06+02:00\n"
    searches = "user,session,time,query,clicked_items\nu,s,2024-01-02,tea,\n"
    log = csv_log.read_csv_log(write(tmp_path / "csv", clicks, searches))
    assert log.rec_times.tolist() == [1_704_164_645_000, 1_704_164_646_000]
    assert log.search_times.tolist() == [1_704_153_600_000] and log.time_unit == "milliseconds"
    zone = datetime.UTC
    whens = [datetime.datetime(2024, 1, 2, 3, 4, s, tzinfo=zone) for s in (5, 6)]
    raw = parquet(
        tmp_path / "parquet",
        clicks={"user": ["u", "u"], "item": ["a", "b"], "time": pa.array(whens)},
        searches={
            "user": ["u"],
            "session": ["s"],
            "time": pa.array([datetime.date(2024, 1, 2)]),
            "query": ["tea"],
            "clicked_items": pa.array([None], pa.list_(pa.string())),
        },
    )
    assert csv_log.read_csv_log(raw).hash == log.hash


@pytest.mark.parametrize(
    ("clicks", "searches", "unit", "found"),
    [
        ("10", "2024-01-02", "infer", "csv_log in one unit of time, found clicks at 10 to 10"),
        ("1704164645000", "2024-01-02", "positions", "beside dates, .* found positions"),
        ("1704164645", "2024-01-02", "infer", "csv_log in one unit of time, found clicks"),
        ("2024-01-02", "2024-01-02", "seconds", "found seconds"),
        ("2024-01-02\nu,b,7", "2024-01-02", "infer", "ISO 8601 dates, .* found '7' in row 2"),
        ("7\nu,b,2024-01-02", "7", "infer", "whole numbers .* found '2024-01-02' in row 2"),
        ("1704164645", "1704164645000", "infer", "csv_log in one unit of time, found clicks at"),
        ("7", "7", "hours", "a time_unit of infer, seconds, .*, positions, found 'hours'"),
    ],
)
def test_times_that_do_not_go_together_are_one_line(tmp_path, clicks, searches, unit, found):
    raw = write(
        tmp_path / "raw",
        f"user,item,time\nu,a,{clicks}\n",
        f"user,session,time,query,clicked_items\nu,s,{searches},tea,\n",
    )
    with pytest.raises(UserError, match=found) as error:
        csv_log.read_csv_log(raw, time_unit=unit)
    assert "\n" not in str(error.value)


def test_the_unit_of_times_is_found_or_told(tmp_path):
    raw = write(tmp_path / "raw")
    assert csv_log.read_csv_log(raw).time_unit == "positions"
    assert csv_log.read_csv_log(raw, time_unit="seconds").time_unit == "seconds"
    late = CLICKS.replace("0\n", "0000000\n").replace(",15\n", ",1500000000\n")
    late = late.replace("10000000", "1700000000").replace("20000000", "1700000001")
    late = late.replace("30000000", "1700000002")
    searches = SEARCHES.replace(",12,", ",1700000000,").replace(",14,", ",1700000001,")
    assert csv_log.read_csv_log(write(tmp_path / "late", late, searches)).time_unit == "seconds"


def test_ids_of_parquet_are_those_of_csv_whatever_their_type(tmp_path):
    expected = csv_log.read_csv_log(
        write(
            tmp_path / "csv",
            "user,item,time\nu1,1,10\nu2,2,20\n",
            "user,session,time,query,clicked_items\nu1,7,12,tea,1 2\n",
        )
    ).hash
    searches = {"session": [7], "time": [12], "query": [b"tea"]}
    for number, (users, items, lists) in enumerate(
        (
            ([b"u1", b"u2"], [1, 2], [[1, 2]]),
            (["u1", "u2"], [1.0, 2.0], [[1.0, 2.0, 1.0]]),
            (pa.array(["u1", "u2"]).dictionary_encode(), ["1", "2"], [[b"1", b"2"]]),
            (["u1", "u2"], [b"1", b"2"], ["1 2"]),
        )
    ):
        raw = parquet(
            tmp_path / str(number),
            clicks={"user": users, "item": items, "time": [10, 20]},
            searches={"user": users[:1], "clicked_items": lists, **searches},
        )
        assert csv_log.read_csv_log(raw).hash == expected


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"item": pa.array(["a", None])}, "column item of .*clicks.parquet, found null in row 2"),
        ({"item": [1.0, math.nan]}, "column item of .* found NaN in row 2"),
        ({"item": [1.0, 1.5]}, "found 1.5, which is no whole number in row 2"),
        ({"user": [True, False]}, "column user of .* found True in row 1"),
        ({"user": [["u"], ["v"]]}, r"column user of .* found \['u'\] in row 1"),
        ({"user": [b"u", b"\xff"]}, "bytes that are no UTF-8"),
        ({"item": [-1, 2]}, "not negative .*, found '-1' in row 1"),
        ({"time": [1.5, 2.0]}, "whole numbers of 63 bits .* found '1.5' in row 1"),
        ({"time": pa.array([1, None])}, "whole numbers .* found '' in row 2"),
    ],
)
def test_cells_of_parquet_that_are_no_ids_are_one_line(tmp_path, changes, found):
    columns = {"user": ["u", "v"], "item": ["a", "b"], "time": [1, 2]} | changes
    write(tmp_path / "raw")
    (tmp_path / "raw" / "clicks.csv").unlink()
    raw = parquet(tmp_path / "raw", clicks=columns)
    with pytest.raises(UserError, match=found) as error:
        csv_log.read_csv_log(raw)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lists", "found"),
    [
        (pa.array([["a"], ["b", None]]), "column clicked_items of .* found null in row 2"),
        (pa.array([[1.0], [math.nan]]), "found NaN in row 2"),
        (pa.array([["a"], ["b c"]]), "column clicked_items, without .* found 'b c' in row 2"),
        (pa.array([{"x": 1}, {"x": 2}]), "expected lists or text in .* found struct"),
        (pa.array([["x" * 1025], []]), "found 1,025 bytes"),
    ],
)
def test_lists_of_clicked_items_are_held_to_the_same(tmp_path, lists, found):
    write(tmp_path / "raw")
    (tmp_path / "raw" / "searches.csv").unlink()
    raw = parquet(
        tmp_path / "raw",
        searches={
            "user": ["u", "v"],
            "session": [1, 2],
            "time": [1, 2],
            "query": ["x", None],
            "clicked_items": lists,
        },
    )
    with pytest.raises(UserError, match=found) as error:
        csv_log.read_csv_log(raw)
    assert "\n" not in str(error.value)


def test_absurd_ids_are_refused_with_their_row_and_long_words_are_cut(tmp_path, caplog):
    long = write(tmp_path / "long", CLICKS + f"u,{'x' * 60_000},40\n")
    with pytest.raises(UserError, match=r"1,024 bytes at most, found 'xxx.*60,000 bytes in row 5"):
        csv_log.read_csv_log(long)
    words = write(tmp_path / "words", searches=SEARCHES.replace("tea", "y" * 60_000))
    assert max(map(len, csv_log.read_csv_log(words).words)) == 256
    assert "cut words of more than 256 characters" in caplog.text and "search 1" in caplog.text


def test_a_byte_order_mark_and_odd_line_ends_within_cells(tmp_path):
    raw = write(tmp_path / "raw")
    for name in ("clicks", "searches"):
        path = tmp_path / "raw" / f"{name}.csv"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"tea", "te\u2028a".encode()))
    log = csv_log.read_csv_log(raw)
    assert log.words.tolist() == ["", "a", "cup", "te"] and len(log.rec_items) == 4


def shop():
    """Read column by column: every click once in the searches and, a second later, in clicks."""
    users = np.repeat(np.arange(40), 5)
    times = np.tile(np.arange(5) * 100, 40) + 1_700_000_000
    items = np.random.default_rng(0).integers(0, 50, len(users))
    sessions = np.arange(len(users))
    clicks = pd.DataFrame({"user": users, "item": items, "time": times + 1})
    searches = pd.DataFrame(
        {"user": users, "session": sessions, "time": times, "query": "x", "clicked_items": items}
    )
    return clicks, searches, sessions


def read_shop(folder, clicks, searches):
    folder.mkdir()
    clicks.to_csv(folder / "clicks.csv", index=False)
    searches.to_csv(folder / "searches.csv", index=False)
    log = csv_log.read_csv_log(str(folder))
    validate_log(log)
    return log, splits.split_log(log, "leave_one_out")


def test_a_click_told_twice_stands_in_its_own_history_and_the_card_says_so(tmp_path, caplog):
    clicks, searches, _ = shop()
    log, parts = read_shop(tmp_path / "raw", clicks, searches)
    told = splits.describe(log, parts)["targets_in_latest_search"]
    assert told == {"train": len(parts.train), "validation": 40, "test": 40}
    splits.warn_of_told_targets(log, parts)
    assert "40 of 40 test targets (100%) are clicked items of their latest" in caplog.text
    assert "search_session" in caplog.text


def test_a_click_that_names_its_search_is_one_event_told_once(tmp_path, caplog):
    clicks, searches, sessions = shop()
    named = clicks.assign(search_session=sessions)
    log, parts = read_shop(tmp_path / "raw", named, searches)
    # An item may come again within a user's five clicks; its own search has it in no case.
    told = splits.targets_in_latest_search(log, parts.test)
    assert told.sum() < 5
    splits.warn_of_told_targets(log, parts)
    assert not caplog.text
    for examples in (parts.train, parts.validation, parts.test):
        seen = examples.search_end - np.asarray(log.search_offsets)[examples.user]
        place = examples.target_row - np.asarray(log.rec_offsets)[examples.user]
        assert (seen == place).all(), "the searches of the clicks before, and not its own"
    assert repeated_interactions.repeated_clicks(log, 5).all()
    assert (log.search_begins == log.search_times - 1).all()
    # What the search does not list of its own clicks is added to it.
    bare, _ = read_shop(tmp_path / "bare", named, searches.assign(clicked_items=""))
    assert bare.hash == log.hash


def test_several_clicks_of_one_search_are_all_its_own(tmp_path):
    clicks = "user,item,time,search_session\nu,a,10,\nu,b,21,s\nu,d,23,\nu,c,25,s\nu,b,40,\n"
    searches = "user,session,time,query,clicked_items\nu,s,20,tea,b c\nu,t,30,cup,\n"
    log = csv_log.read_csv_log(write(tmp_path / "raw", clicks, searches))
    assert log.search_times.tolist() == [25, 30] and log.search_begins.tolist() == [20, 30]
    rec_end, search_end = splits.history_ends(log, np.arange(5))
    # b, d and c come before the search is history; the later b is another event.
    assert rec_end.tolist() == [0, 1, 2, 3, 4] and search_end.tolist() == [0, 0, 0, 0, 2]
    assert splits.search_history_ends(log, np.array([0]))[0].tolist() == [1]
    assert repeated_interactions.repeated_clicks(log, 2).tolist() == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert repeated_interactions.repeated_clicks(log, 1).tolist() == [
        False,
        True,
        False,
        False,
        False,
    ]


def test_a_click_that_its_clock_puts_before_its_search_is_its_own_all_the_same(tmp_path):
    clicks = "user,item,time,search_session\nu,a,10,\nu,b,19,s\n"
    searches = "user,session,time,query,clicked_items\nu,s,20,tea,b\n"
    log = csv_log.read_csv_log(write(tmp_path / "raw", clicks, searches))
    assert (log.search_begins.tolist(), log.search_times.tolist()) == ([19], [20])
    # The search's history holds the click on a alone, the click's no search.
    assert splits.search_history_ends(log, np.array([0]))[0].tolist() == [1]
    assert splits.history_ends(log, np.array([1]))[1].tolist() == [0]
    assert repeated_interactions.repeated_clicks(log, 1).tolist() == [False, True]


def test_a_click_that_names_no_search_of_its_user_is_one_line(tmp_path):
    clicks = "user,item,time,search_session\nu,a,10,\nv,b,21,s\n"
    searches = "user,session,time,query,clicked_items\nu,s,20,tea,b\n"
    raw = write(tmp_path / "raw", clicks, searches)
    with pytest.raises(UserError, match=r"found 's', which user v does not have, in row 2"):
        csv_log.read_csv_log(raw)
    with pytest.raises(UserError, match="expected sessions in searches for search_session of"):
        csv_log.read_csv_log(raw, columns="session=")


def test_ids_written_in_two_ways_and_files_left_over_are_told(tmp_path, caplog):
    raw = write(tmp_path / "raw", searches=SEARCHES.replace("tea,b", "tea,item_b"))
    (tmp_path / "raw" / "notes.csv").write_text("x\n")
    log, _ = prepare.prepare_log("csv_log", raw, str(tmp_path / "cache"), {})
    assert log.reading["unmatched_share_of_clicked_items"] == 1.0
    assert log.reading["files_ignored"] == ["notes.csv"]
    assert "100% of the items in clicked_items are neither" in caplog.text


def test_a_prepared_folder_serves_whatever_its_files_columns_were_called(tmp_path):
    raw = write(tmp_path / "raw", CLICKS.replace("user,", "user_id,"), SEARCHES)
    folder = str(tmp_path / "prepared")
    given = {"columns": "clicks.user=user_id", "time_unit": "seconds", "segmenter": "characters"}
    made = prepare.prepare_into("csv_log", raw, folder, given)
    opened, _ = prepare.prepare_log(
        "csv_log",
        folder,
        "unused",
        {"columns": "", "time_unit": "infer", "segmenter": "characters"},
    )
    assert (opened.hash, opened.time_unit) == (made.hash, "seconds")
