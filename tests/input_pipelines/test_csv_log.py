"""csv_log: the documented example, parquet, and every mistake of its writer."""

import pathlib
import shutil

import pandas as pd
import pytest

from core.errors import UserError
from input_pipelines import segmenters
from input_pipelines.log_checks import validate_log
from input_pipelines.readers import csv_log

EXAMPLE = pathlib.Path(__file__).parents[1] / "data" / "csv_log"


@pytest.fixture
def folder(tmp_path):
    return pathlib.Path(shutil.copytree(EXAMPLE, tmp_path / "raw"))


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


def test_the_example_of_twenty_rows():
    rows = sum(len(pd.read_csv(EXAMPLE / f"{n}.csv")) for n in ("clicks", "searches", "items"))
    assert rows == 20
    log = csv_log.read_csv_log(str(EXAMPLE), segmenter="characters")
    validate_log(log)
    assert (log.num_users, log.num_items, len(log.rec_items)) == (5, 9, 10)
    # Bo's searches stand in another order in the file.
    assert searches_of(log, "bo") == [
        (110, ["lamp", "warm", "light"], []),
        (330, ["standing", "desk"], ["desk"]),
        (600, [], ["chair"]),
    ]
    assert searches_of(log, "ada")[0] == (200, ["green", "tea"], ["teapot", "mug"])
    assert searches_of(log, "eli") == [(150, ["绿", "茶", "cup"], ["mug"])]
    assert searches_of(log, "cem") == []
    # Items of items.csv that nobody touched have rows.
    assert {"sofa", "rug"} < set(log.item_ids.tolist())


def test_parquet_says_the_same_as_csv(folder):
    expected = csv_log.read_csv_log(str(folder)).hash
    for name in ("clicks", "searches", "items"):
        table = pd.read_csv(folder / f"{name}.csv", keep_default_na=False)
        if name == "searches":
            table["clicked_items"] = [cell.split() for cell in table["clicked_items"]]
        table.to_parquet(folder / f"{name}.parquet")
        (folder / f"{name}.csv").unlink()
    assert csv_log.read_csv_log(str(folder)).hash == expected


def test_items_are_optional_and_searches_may_be_a_header(folder):
    (folder / "items.csv").unlink()
    (folder / "searches.csv").write_text("user,session,time,query,clicked_items\n")
    log = csv_log.read_csv_log(str(folder))
    assert (log.num_items, len(log.search_times)) == (7, 0)


def test_ids_are_text(folder):
    (folder / "clicks.csv").write_text("user,item,time\n7,007,1\n7,7,2\n")
    log = csv_log.read_csv_log(str(folder))
    assert {"007", "7"} < set(log.item_ids.tolist())


def test_words_that_elsewhere_mean_missing_are_text(folder):
    (folder / "clicks.csv").write_text("user,item,time\nNA,null,1\n")
    log = csv_log.read_csv_log(str(folder))
    assert "NA" in log.user_ids and "null" in log.item_ids


def test_rows_may_end_before_columns_that_are_not_read(folder):
    (folder / "clicks.csv").write_text("user,item,time,note\na,b,1,\na,c,2\n   \n\nd,f,3,x\n")
    assert len(csv_log.read_csv_log(str(folder)).rec_items) == 3
    (folder / "clicks.csv").write_text('user,note,item,time\na,"x\ny",b,\na,z,c\n')
    with pytest.raises(UserError, match=r"column time in every row .* found row 2"):
        csv_log.read_csv_log(str(folder))


def test_large_times_are_exact(folder):
    (folder / "clicks.csv").write_text(f"user,item,time\na,b,{2**53 + 1}\n")
    (folder / "searches.csv").write_text("user,session,time,query,clicked_items\n")
    assert csv_log.read_csv_log(str(folder)).rec_times.tolist() == [2**53 + 1]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("clicks", None, "expected clicks.csv or clicks.parquet in .* found neither"),
        ("searches", None, "expected searches.csv or searches.parquet"),
        (
            "clicks",
            "user,item,when\na,b,1\n",
            "column time in .*clicks.csv, found user, item, when",
        ),
        ("searches", "user,session,time,query\n", "column clicked_items in .*searches.csv"),
        ("items", "title\nMug\n", "column item in .*items.csv, found title"),
        ("clicks", "", "a whole csv file at .*clicks.csv"),
        ("clicks", "user,item,time\na,b,1,2\n", "more fields than the header"),
        ("clicks", "user,item,time\na,b,1\na,b\n", "column time in every row .* found row 2 with"),
        (
            "searches",
            "user,session,time,query,clicked_items\na,s,1,x,\na,t,2,y\n",
            "column clicked_items in every row .*, found row 2 without it; .* cut short",
        ),
        (
            "searches",
            "user,session,time,query,clicked_items\na,s,1\na,t,2,y,\n",
            "column query in every row of .*searches.csv, found row 1 without it",
        ),
        ("items", "item,title\nmug\n", "column title in every row of .*items.csv, found row 1"),
        ("clicks", "user,item,time\na,b,2_000\n", "whole numbers .* found '2_000' in row 1"),
        ("clicks", "user,item,time\na,b, 2\n", "whole numbers .* found ' 2' in row 1"),
        ("clicks", "user,item,time\na,b,٣\n", "whole numbers .* found '٣' in row 1"),
        ("clicks", "user,item,time\n-1,b,1\n", "column user, .*found '-1' in row 1"),
        ("clicks", "user,item,time\na,b,1\na,,1\n", "column item, .*found '' in row 2"),
        ("clicks", "user,item,time\na,b c,1\n", "column item, .*found 'b c' in row 1"),
        ("clicks", "user,item,time\na,b,1\na,b,1.5\n", "found '1.5' in row 2"),
        ("clicks", "user,item,time\na,b,\n", "as time of .*clicks.csv, found '' in row 1"),
        ("clicks", f"user,item,time\na,b,{2**63}\n", "whole numbers of 63 bits"),
        # The difference of the two has no 64 bits.
        ("clicks", f"user,item,time\na,b,{-(2**62)}\na,c,{2**62}\n", "whole numbers of 63 bits"),
        ("clicks", "user,item,time" + ",x" * 10_000 + "\n", "more than 10,000 columns"),
        ("clicks", "user,item,time\na,b,1" + "," * 1_000_000 + "\n", "more fields than the header"),
        ("clicks", "user,item,time\n", "expected clicks in the log of csv_log, found none"),
        (
            "searches",
            "user,session,time,query,clicked_items\na,s,1,x,\nb,s,1,x,\na,s,2,y,\n",
            "user a session s again in row 3",
        ),
        (
            "searches",
            "user,session,time,query,clicked_items\na,s,1,x,mug -4\n",
            "column clicked_items, .*found '-4'",
        ),
    ],
)
def test_mistakes_end_in_one_line(folder, name, text, found):
    path = folder / f"{name}.csv"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(UserError, match=found) as error:
        csv_log.read_csv_log(str(folder))
    assert "\n" not in str(error.value)


def test_truncated_parquet(folder):
    table = pd.read_csv(folder / "clicks.csv")
    table.to_parquet(folder / "clicks.parquet")
    (folder / "clicks.csv").unlink()
    content = (folder / "clicks.parquet").read_bytes()
    (folder / "clicks.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"a whole parquet file at .*clicks.parquet") as error:
        csv_log.read_csv_log(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("Visa申请 2024", ["visa", "申", "请", "2024"]),
        ("ＡＢＣ！iPhone15", ["abc", "iphone15"]),
        ("naïve café", ["naïve", "café"]),
        ("ひらがな", ["ひ", "ら", "が", "な"]),
        ("snake_case", ["snake", "case"]),
        ("?! 😀", []),
        ("", []),
    ],
)
def test_characters_are_words(query, words):
    assert segmenters.characters(query) == words


def test_jieba_finds_words_and_drops_punctuation():
    pytest.importorskip("jieba", reason="jieba is an extra")
    assert segmenters.segmenter("jieba")("文明校园，iPhone!") == ["文明", "校园", "iphone"]


def test_segmenters_that_cannot_be_had(monkeypatch):
    with pytest.raises(UserError, match="characters, jieba, found 'spaces'"):
        segmenters.segmenter("spaces")
    monkeypatch.setattr(segmenters.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '.\[jieba\]'"):
        segmenters.segmenter("jieba")
