"""Amazon's raw files: the recipe by hand, order by position, every malformed file."""

import gzip
import json

import numpy as np
import pytest

from configs import lcr_ser
from core.errors import UserError
from experiments.resolve import resolve
from input_pipelines.dataset import Dataset
from input_pipelines.log_checks import validate_log
from input_pipelines.readers import amazon_raw
from input_pipelines.splits import check_leakage, split_log

DAY = 86_400
# (user, item, day): A1's two reviews of day 3 are in no published order.
REVIEWS = [
    ("A1", "B03", 3),
    ("A1", "B01", 1),
    ("A1", "B02", 3),
    ("A1", "B01", 1),
    ("A1", "B04", 9),
    ("A2", "B01", 5),
    ("A2", "B02", 2),
    ("A3", "B01", 1),
    ("A3", "B09", 2),
]
META = ["B01", "B02", "B03", "B04", "B05"]
QUERIES = ["kindle store fiction", "kindle store", "romance"]
TRAIN = ["A1_0 0 B01 1", "A1_1 0 B01 1", "A2_2 0 B02 1", "A1_0 0 B05 1"]
TEST = ["A1_2 0 B04 1", "A9_1 0 B01 1"]


def review(user, item, day):
    return {"reviewerID": user, "asin": item, "unixReviewTime": day * DAY, "overall": 5.0}


def pack(path, lines):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))


def write(folder, reviews=REVIEWS, queries=QUERIES, train=TRAIN, test=TEST, meta=META):
    folder.mkdir(exist_ok=True)
    pack(folder / "reviews_Toys_5.json.gz", [json.dumps(review(*r)) for r in reviews])
    # As published: Python literals, which are no JSON.
    pack(
        folder / "meta_Toys.json.gz",
        [str({"asin": m, "title": "It's", "also": None}) for m in meta],
    )
    pack(folder / "query_text.txt.gz", queries)
    pack(folder / "train.qrels.gz", train)
    pack(folder / "test.qrels.gz", test)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "raw")


def clicks_of(log, name):
    user = log.user_ids.tolist().index(name)
    rows = range(log.rec_offsets[user], log.rec_offsets[user + 1])
    return [(int(log.rec_times[r]), str(log.item_ids[log.rec_items[r]])) for r in rows]


def searches_of(log, name):
    user = log.user_ids.tolist().index(name)
    searches = []
    for s in range(log.search_offsets[user], log.search_offsets[user + 1]):
        words = log.words[log.word_ids[log.word_offsets[s] : log.word_offsets[s + 1]]]
        items = log.item_ids[log.click_items[log.click_offsets[s] : log.click_offsets[s + 1]]]
        searches.append((int(log.search_times[s]), " ".join(words), items.tolist()))
    return searches


def test_the_log_by_hand(folder):
    log = amazon_raw.read_amazon_raw(str(folder))
    validate_log(log)
    # A3 has no query and goes; so do B09, which has no metadata, and B05, which nobody reviewed.
    assert log.name == "amazon_toys" and log.user_ids.tolist() == ["", "A1", "A2"]
    assert log.item_ids.tolist() == ["", "B01", "B02", "B03", "B04"]
    clicks = clicks_of(log, "A1")
    assert [time for time, _ in clicks] == [0, 1, 2, 3]
    assert (clicks[0][1], clicks[3][1]) == ("B01", "B04")
    assert {clicks[1][1], clicks[2][1]} == {"B02", "B03"}
    assert clicks_of(log, "A2") == [(0, "B02"), (1, "B01")]
    first, last = searches_of(log, "A1")
    assert first in [(0, text, ["B01"]) for text in QUERIES[:2]]
    assert last == (3, "romance", ["B04"])
    assert searches_of(log, "A2") == [(0, "romance", ["B02"])]


def test_an_items_text_is_its_title_and_description_never_its_categories(folder):
    records = [
        {"asin": "B01", "title": "A\tpot ", "description": "It's\nblue", "categories": [["Toys"]]},
        {"asin": "B02", "title": None, "brand": "Acme"},
        {"asin": "B03", "description": "round"},
        {"asin": "B04", "title": "never sold"},
    ]
    pack(folder / "meta_Toys.json.gz", [*map(str, records[:2]), *map(json.dumps, records[2:])])
    log = amazon_raw.read_amazon_raw(str(folder))
    assert log.item_ids.tolist() == ["", "B01", "B02", "B03", "B04"]
    assert log.item_texts() == ["A pot It's blue", "", "round", "never sold"]


def test_order_of_rows_changes_nothing_and_the_seed_does(folder, tmp_path):
    expected = amazon_raw.read_amazon_raw(str(folder)).hash
    # Pinned: another hash would make every run on prepared data one on other data.
    assert expected == "82e461e7091fd0a1"
    other = write(tmp_path / "other", REVIEWS[::-1], train=TRAIN[::-1])
    assert amazon_raw.read_amazon_raw(str(other)).hash == expected
    hashes = {amazon_raw.read_amazon_raw(str(folder), query_seed=s).hash for s in range(12)}
    assert len(hashes) == 2  # A1's one choice, between two queries


def planted(folder, users=8, length=7):
    """Every review has a query of its own, named after it."""
    reviews = [
        (f"U{u}", f"I{(u * 3 + p) % 40}", p // 2) for u in range(users) for p in range(length)
    ]
    queries = [f"q{n}" for n in range(len(reviews))]
    qrels = [f"{user}_{n} 0 {item} 1" for n, (user, item, _) in enumerate(reviews)]
    items = sorted({item for _, item, _ in reviews})
    return write(folder, reviews, queries, qrels, [], items)


def test_a_targets_own_query_is_in_no_history_of_it(tmp_path):
    log = amazon_raw.read_amazon_raw(str(planted(tmp_path / "raw")))
    parts = split_log(log, "leave_one_out", min_history=0)
    check_leakage(log, parts)
    assert len(parts.test) == len(parts.validation) == 8
    for name in ("train", "validation", "test"):
        examples = getattr(parts, name)
        for user, row, end in zip(
            examples.user, examples.target_row, examples.search_end, strict=True
        ):
            start = log.search_offsets[user]
            position = int(log.rec_times[row])
            # One search a review: the target's own is the one at its position.
            own = log.word_ids[start + position]
            assert end - start == position
            assert own not in log.word_ids[start:end]
            assert log.click_items[start + position] == log.rec_items[row]


def test_the_config_opens_on_it(tmp_path):
    config = lcr_ser.get_config("amazon_raw")
    config.data_dir, config.cache_dir = str(planted(tmp_path / "raw")), str(tmp_path / "cache")
    data = Dataset(resolve(config))
    assert data.label == "amazon_toys" and len(data.splits.test) == 8


@pytest.mark.parametrize(
    "name", ["reviews_Toys_5.json", "meta_Toys.json", "query_text.txt", "train.qrels"]
)
def test_a_file_cut_short(folder, name):
    path = folder / f"{name}.gz"
    noise = np.random.default_rng(0).integers(0, 10**9, 5000).tolist()
    with gzip.open(path, "rt") as file:
        lines = file.read().splitlines()
    if name == "query_text.txt":
        lines += [str(n) for n in noise]
    pack(path, lines)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 12])
    with pytest.raises(UserError, match=rf"a whole gz file of UTF-8 text at .*{name}\.gz") as error:
        amazon_raw.read_amazon_raw(str(folder))
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_gz(folder):
    (folder / "query_text.txt.gz").write_text("kindle store\n")
    with pytest.raises(UserError, match=r"a whole gz file .*query_text\.txt\.gz"):
        amazon_raw.read_amazon_raw(str(folder))


@pytest.mark.parametrize(
    ("name", "lines", "found"),
    [
        ("meta_Toys.json", ["{'asin': 'B01'}", "{'title': 'x'}"], "a dict with asin, .* in line 2"),
        ("meta_Toys.json", ["{'asin': __import__('os').getcwd()}"], "a dict with asin, .* line 1"),
        ("meta_Toys.json", ["{'asin': 'B01', 'title': 3}"], "title, description as text .* line 1"),
        ("reviews_Toys_5.json", ['{"asin": "B01"}'], "reviewerID, asin, unixReviewTime in line 1"),
        ("reviews_Toys_5.json", [json.dumps(review("A1", "B01", 1)), "["], "in line 2 of"),
        ("train.qrels", ["A1_0 0 B01 1", "A1 0 B01 1"], "REVIEWER_QUERY 0 ASIN 1 in line 2 of"),
        ("train.qrels", ["A1_7 0 B01 1"], "a query number below 3 in line 1"),
        ("train.qrels", [f"A1_{'9' * 5000} 0 B01 1"], "a query number below 3 in line 1"),
        ("query_text.txt", [""] * 2**21, "at most 1,0.* lines and 50 characters a byte in .*text"),
        ("train.qrels", ["A1_0 0 B01"], "found 'A1_0 0 B01'"),
    ],
)
def test_malformed_lines_are_named(folder, name, lines, found):
    pack(folder / f"{name}.gz", lines)
    with pytest.raises(UserError, match=found) as error:
        amazon_raw.read_amazon_raw(str(folder))
    assert "\n" not in str(error.value)


def test_files_that_do_not_belong_together(folder):
    pack(folder / "train.qrels.gz", [])
    pack(folder / "test.qrels.gz", [])
    with pytest.raises(UserError, match=r"users with reviews and queries in .* found none"):
        amazon_raw.read_amazon_raw(str(folder))
    (folder / "meta_Toys.json.gz").rename(folder / "meta_Music.json.gz")
    with pytest.raises(UserError, match=r"of one category .* meta_Music"):
        amazon_raw.raw_files(str(folder))
    pack(folder / "meta_Toys.json.gz", [])
    with pytest.raises(UserError, match=r"one file meta_\*\.json\.gz .* found meta_Music"):
        amazon_raw.raw_files(str(folder))
    (folder / "query_text.txt.gz").unlink()
    (folder / "meta_Music.json.gz").unlink()
    with pytest.raises(UserError, match=r"expected query_text\.txt\.gz in"):
        amazon_raw.raw_files(str(folder))


def test_reviews_without_a_line(folder):
    pack(folder / "reviews_Toys_5.json.gz", [])
    with pytest.raises(UserError, match=r"users with reviews and queries in .* found none"):
        amazon_raw.read_amazon_raw(str(folder))


def test_only_newlines_end_lines_and_ids_of_json_are_held_to_the_rule(tmp_path):
    raw = write(tmp_path / "raw")
    expected = amazon_raw.read_amazon_raw(str(raw)).hash
    lines = [json.dumps({"asin": m, "title": "a\u2028b \ud83d"}) for m in META]
    lines[0] = json.dumps({"asin": META[0], "title": "a\u2028b"}, ensure_ascii=False)
    pack(raw / "meta_Toys.json.gz", ["\ufeff" + lines[0], *lines[1:]])
    log = amazon_raw.read_amazon_raw(str(raw))
    validate_log(log)
    assert log.hash == expected
    assert log.item_texts() == ["a b", *["a b \ufffd"] * 3]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reviewerID", None),
        ("reviewerID", float("nan")),
        ("asin", True),
        ("asin", ["B01"]),
        ("asin", ""),
        ("unixReviewTime", 1.5),
        ("unixReviewTime", True),
        ("unixReviewTime", 10**30),
    ],
)
def test_ids_and_times_that_are_none_are_one_line(tmp_path, key, value):
    raw = write(tmp_path / "raw")
    rows = [json.dumps(review(*r)) for r in REVIEWS]
    rows[1] = json.dumps(review(*REVIEWS[1]) | {key: value})
    pack(raw / "reviews_Toys_5.json.gz", rows)
    with pytest.raises(UserError, match=r"a dict with reviewerID, .* in line 2 of") as error:
        amazon_raw.read_amazon_raw(str(raw))
    assert "\n" not in str(error.value)
