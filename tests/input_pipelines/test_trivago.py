"""trivago's sessions: which actions become which events, the real files, and what is refused."""

import pathlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import UserError
from input_pipelines import search_task, splits
from input_pipelines.data_card import describe
from input_pipelines.log_checks import validate_log
from input_pipelines.prepare import prepare_log
from input_pipelines.readers import trivago

ROOT = pathlib.Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "trivago_100k"
COLUMNS = ("user_id", "session_id", "timestamp", "step", "action_type", "reference", "city")
ROME, PARIS = "Rome, Italy", "Paris, France"


def action(time, step, kind, reference, city=ROME, pages=None, user="ann", session="s"):
    """One row; `pages` is {item: price}."""
    values = (user, session, time, step, kind, reference, city)
    row = dict(zip(COLUMNS, values, strict=True))
    shown = None if pages is None else "|".join(map(str, pages))
    return row | {
        "impressions": shown,
        "prices": None if pages is None else "|".join(map(str, pages.values())),
        "device": "tablet",
    }


def session():
    """Ann clicks, searches, filters, clicks twice; Bob looks for a hotel by name."""
    return [
        action(10, 1, "clickout item", "7", pages={5: 40, 7: 62}),
        action(20, 2, "search for destination", PARIS, PARIS),
        action(25, 3, "interaction item image", "3", PARIS),
        action(30, 4, "clickout item", "8", PARIS, {8: 90, 9: 100, 6: 80}),
        # The order of rows of one second is that of the steps.
        action(40, 6, "clickout item", "9", PARIS, {9: 130, 8: 90}),
        action(40, 5, "filter selection", "4 Star", PARIS),
        action(40, 7, "filter selection", "unknown", PARIS),
        action(40, 8, "clickout item", "9", PARIS, {9: 130, 8: 90}),
        action(50, 9, "change of sort order", "price only", PARIS),
        # A new session does not know the searches of another one.
        action(60, 1, "clickout item", "5", pages={5: 48}, session="t"),
        action(15, 1, "search for item", "12", user="bob", session="u"),
        action(16, 2, "interaction item info", "unknown", user="bob", session="u"),
    ]


def write(folder, rows, name="a.parquet"):
    pd.DataFrame(rows).to_parquet(folder / name)
    return str(folder)


def events(log):
    """(user, time, query, clicked, unclicked, place) of every search."""
    users = np.repeat(np.arange(log.num_users + 1), np.diff(log.search_offsets))

    def names(items):
        return " ".join(log.item_ids[items].tolist())

    return [
        (
            str(log.user_ids[users[s]]),
            int(log.search_times[s]),
            " ".join(log.query(s)),
            names(log.click_items[log.click_offsets[s] : log.click_offsets[s + 1]]),
            names(log.unclicked(s)),
            log.place(s),
        )
        for s in range(len(log.search_times))
    ]


def test_a_session_by_hand(tmp_path):
    log = trivago.read_trivago(write(tmp_path, session()))
    validate_log(log)
    clicks = [str(log.item_ids[i]) for i in log.rec_items]
    # 9 was clicked twice in second 40.
    assert clicks == ["7", "8", "9", "5"] and log.rec_times.tolist() == [10, 30, 40, 60]
    rows = events(log)
    # Which of two searches of one second stands first is chosen by a hash.
    assert {row for row in rows if row[1] == 40} == {
        ("ann", 40, "4 star", "", "", PARIS),
        ("ann", 40, "4 star", "9", "8", PARIS),
    }
    assert [row for row in rows if row[1] != 40] == [
        ("ann", 10, "", "7", "5", ROME),
        ("ann", 20, "paris france", "", "", PARIS),
        ("ann", 30, "paris france", "8", "9 6", PARIS),
        ("ann", 60, "", "5", "", ROME),
        ("bob", 15, "12", "", "", ROME),
    ]


def test_what_stands_in_for_a_title(tmp_path):
    log = trivago.read_trivago(write(tmp_path, session()))
    texts = dict(zip(log.item_ids[1:].tolist(), log.item_texts(), strict=True))
    assert texts == {
        "12": f"hotel 12 in {ROME}",  # no page has shown it
        "3": f"hotel 3 in {PARIS}",
        "5": f"hotel 5 in {ROME}, price 40",  # the median of 40 and 48
        "6": f"hotel 6 in {PARIS}, price 80",
        "7": f"hotel 7 in {ROME}, price 60",
        "8": f"hotel 8 in {PARIS}, price 90",
        "9": f"hotel 9 in {PARIS}, price 120",  # of 100 and 130: 115, to the even ten
    }


def test_what_one_user_searches_is_no_query_of_another_with_the_same_session(tmp_path):
    rows = [
        action(10, 1, "search for destination", PARIS, PARIS, user="ann"),
        action(20, 2, "clickout item", "7", user="bob"),
        action(30, 3, "clickout item", "8", user="ann"),
    ]
    rows[2] |= {"impressions": "5|8|5", "prices": "40|60|40"}
    log = trivago.read_trivago(write(tmp_path, rows))
    # A page that shows 5 twice shows it once; one without impressions is legal.
    assert events(log)[1:] == [
        ("ann", 30, "paris france", "8", "5", ROME),
        ("bob", 20, "", "7", "", ROME),
    ]
    assert log.item_texts()[1] == f"hotel 7 in {ROME}"


def test_sessions_of_click_outs_alone(tmp_path):
    log = trivago.read_trivago(write(tmp_path, [session()[0]]))
    assert events(log) == [("ann", 10, "", "7", "5", ROME)] and log.num_words == 0


def test_a_search_example_sees_neither_of_its_own_faces(tmp_path):
    log = trivago.read_trivago(write(tmp_path, session()))
    searches = search_task.training_searches(log, splits.split_log(log, "global_time"))
    # The click-out at 30: before it are the click and the search of 10, and the words of 20.
    row = [int(log.search_times[s]) for s in searches.target_row].index(30)
    assert (int(searches.rec_end[row]), int(searches.search_end[row])) == (1, 2)


def test_files_are_read_together_and_their_order_does_not_matter(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    rows = session()
    write(whole, rows)
    # The cut is inside a session.
    write(parts, rows[3:][::-1], "a.parquet")
    write(parts, rows[:3], "b.parquet")
    first, second = (trivago.read_trivago(str(folder)) for folder in (whole, parts))
    assert first.hash == second.hash and first.item_texts() == second.item_texts()


def test_prepared_it_keeps_what_was_shown_and_where(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    write(raw, session())
    log, _ = prepare_log("trivago", str(raw), str(tmp_path / "cache"), {"segmenter": "characters"})
    assert events(log) == events(trivago.read_trivago(str(raw)))


def without(name):
    return lambda rows: [{k: v for k, v in row.items() if k != name} for row in rows]


def first(**changes):
    return lambda rows: [rows[0] | changes, *rows[1:]]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (without("impressions"), "expected the columns user_id, .*, found no impressions; use"),
        (without("step"), "found no step"),
        (
            first(timestamp="noon"),
            "a whole number in column timestamp of .*, found 'noon' in row",
        ),
        (first(timestamp=None), "a whole number in column timestamp of .*, found 'nan' in row 1"),
        (first(timestamp="9" * 19), "a whole number in column timestamp .*, found '9999"),
        (first(timestamp="9" * 5000), "a whole number in column timestamp .*, found '9999"),
        (first(timestamp=1.5), "a whole number in column timestamp of .*, found '1.5' in row 1"),
        (first(impressions="5|Ritz"), "numbers separated by | in column impressions .*'5|Ritz'"),
        (first(prices="4|cheap"), "numbers separated by | in column prices of .*'4|cheap' in row"),
        (
            first(prices="4"),
            "as many prices as impressions in column prices .*, found '4' in row",
        ),
        (first(reference="Ritz"), "an item's number in column reference of .*, found 'Ritz' in"),
        (first(user_id=""), "ids in column user_id of .*, found an empty one in row 1"),
        (first(city=None), "text that is not empty in column city of .*, found 'None' in row 1"),
    ],
)
def test_bad_cells_end_in_one_line(tmp_path, change, found):
    rows = change(session())
    names = list(rows[0])
    # Written as one type a column: numbers beside a text are text.
    columns = {name: [row[name] for row in rows] for name in names}
    for name, values in columns.items():
        if any(isinstance(value, str) for value in values):
            columns[name] = [None if value is None else str(value) for value in values]
        elif any(isinstance(value, float) or value is None for value in values):
            columns[name] = [np.nan if value is None else float(value) for value in values]
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=found.replace("|", r"\|")) as error:
        trivago.read_trivago(str(tmp_path))
    assert "\n" not in str(error.value)


def test_empty_broken_and_missing_files_end_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"expected trivago's sessions as \*.parquet in .*no such"):
        trivago.read_trivago(str(tmp_path))
    table = pa.Table.from_pandas(pd.DataFrame(session()))
    pq.write_table(table.slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"expected actions in .*a\.parquet, found no row; use an"):
        trivago.read_trivago(str(tmp_path))
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"a whole parquet file at .*cannot be read") as error:
        trivago.read_trivago(str(tmp_path))
    assert "\n" not in str(error.value)
    write(tmp_path, session()[1:3])
    with pytest.raises(UserError, match="expected clicks in the log of trivago, found none"):
        trivago.read_trivago(str(tmp_path))


@pytest.fixture(scope="module")
def real():
    if not REAL.exists():
        pytest.skip(f"needs {REAL.relative_to(ROOT.parent)} beside the repository")
    return trivago.read_trivago(str(REAL))


def test_the_real_sessions(real):
    validate_log(real)
    card = describe(real)
    # 13,597 click-outs, of which 48 repeat user, item and second.
    clicks = 13_597 - 48
    assert (card["users"], card["clicks"], card["clicks_in_searches"]) == (6593, clicks, clicks)
    # 4,140 typed texts, 1,044 hotels by number and 5,303 filters less 33 unknown.
    assert card["searches"] == clicks + 4140 + 1044 + 5303 - 33
    # 13,949 are clicked or looked at, the others only shown.
    assert card["items"] == 107_603 and all(real.item_texts())
    per_page = card["shown_in_searches_without_click"] / clicks
    assert 21.9 < per_page < 22.1  # of about 23 impressions one is clicked
    assert (np.asarray(real.search_places) > 0).all()
    for name in ("by_user", "leave_one_out", "global_time"):
        splits.check_leakage(real, splits.split_log(real, name))


def test_no_real_search_shows_what_it_clicked_as_unclicked(real):
    owners = np.repeat(np.arange(len(real.search_times)), np.diff(real.unclicked_offsets))
    shown = set(zip(owners.tolist(), real.unclicked_items.tolist(), strict=True))
    owners = np.repeat(np.arange(len(real.search_times)), np.diff(real.click_offsets))
    clicked = set(zip(owners.tolist(), real.click_items.tolist(), strict=True))
    assert len(shown) == len(real.unclicked_items) and not shown & clicked
