"""Amazon Beauty: positions as times, and two faces of one purchase that never meet."""

import json
import pathlib

import numpy as np
import pytest

from core.errors import UserError
from input_pipelines import splits
from input_pipelines.log_checks import validate_log
from input_pipelines.readers import amazon_beauty

REAL = pathlib.Path(__file__).parents[3] / "shared" / "data" / "amazon_beauty"


def write(folder, sequences, query_ids, queries):
    folder.mkdir(exist_ok=True)
    lines = [f"{user}\t{' '.join(map(str, items))}" for user, items in sequences.items()]
    (folder / "sequences.tsv").write_text("\n".join(lines) + "\n")
    records = [json.dumps({"item": i, "title": "t", "query_ids": q}) for i, q in query_ids.items()]
    (folder / "items.jsonl").write_text("\n".join(records) + "\n")
    (folder / "queries.tsv").write_text("".join(f"{q}\t{text}\n" for q, text in queries.items()))
    return str(folder)


def words_of(log, search):
    part = log.word_ids[log.word_offsets[search] : log.word_offsets[search + 1]]
    return log.words[part].tolist()


def test_by_hand(tmp_path):
    folder = write(
        tmp_path / "raw",
        {0: [3, 1, 3], 1: [2]},
        {1: [0], 2: [], 3: [1], 4: [0]},
        {0: "hair care", 1: "nails"},
    )
    log = amazon_beauty.read_amazon_beauty(folder)
    validate_log(log)
    assert log.item_ids.tolist() == ["", "1", "2", "3", "4"]
    assert log.rec_items.tolist() == [3, 1, 3, 2]
    assert log.rec_times.tolist() == [0, 1, 2, 0]
    # Item 2 has no query: user 1 has no search.
    assert log.search_offsets.tolist() == [0, 0, 3, 3]
    assert log.search_times.tolist() == [0, 1, 2]
    assert [words_of(log, s) for s in range(3)] == [["nails"], ["hair", "care"], ["nails"]]
    assert log.click_items.tolist() == [3, 1, 3]
    # A target's history holds earlier positions only, not its own search.
    assert splits.history_ends(log, np.array([0, 1, 2, 3]))[1].tolist() == [0, 1, 2, 3]


def test_queries_are_chosen_by_seed_among_all_of_an_item(tmp_path):
    folder = write(
        tmp_path / "raw",
        {user: [1] * 8 for user in range(50)},
        {1: [0, 1, 2]},
        {0: "zero", 1: "one", 2: "two"},
    )
    first = amazon_beauty.read_amazon_beauty(folder)
    # Pinned: another hash would make every run on prepared data one on other data.
    assert first.hash == "2e91bbedd2a11b6d"
    assert first.hash != amazon_beauty.read_amazon_beauty(folder, query_seed=1).hash
    counts = np.bincount(first.word_ids, minlength=4)[1:]
    # 400 draws of three; 133 each, standard deviation 9.4.
    assert counts.sum() == 400 and counts.min() > 90


@pytest.fixture
def planted(tmp_path):
    """Every purchase is of an item of its own, whose query is a word of its own."""
    generator = np.random.default_rng(0)
    sequences, item = {}, 0
    for user in range(40):
        length = int(generator.integers(1, 9))
        sequences[user] = list(range(item, item + length))
        item += length
    every = {n: [n] for n in range(item)}
    return amazon_beauty.read_amazon_beauty(
        write(tmp_path / "raw", sequences, every, {n: f"unique{n}" for n in range(item)})
    )


@pytest.mark.parametrize("name", ["leave_one_out", "global_time"])
def test_a_query_planted_at_a_target_is_in_no_history_of_it(planted, name):
    log = planted
    parts = splits.split_log(log, name, min_history=0)
    splits.check_leakage(log, parts)
    seen = 0
    for examples in (parts.train, parts.validation, parts.test):
        for user, row, rec_end, search_end in zip(
            examples.user, examples.target_row, examples.rec_end, examples.search_end, strict=True
        ):
            item = log.rec_items[row]
            planted_word = f"unique{log.item_ids[item]}"
            searches = range(log.search_offsets[user], search_end)
            assert item not in log.rec_items[log.rec_offsets[user] : rec_end]
            assert not any(planted_word in words_of(log, s) for s in searches)
            assert not any(item in log.click_items[log.click_offsets[s] :][:1] for s in searches)
            # All that is earlier is there: as many searches as purchases.
            position = log.rec_times[row]
            assert len(searches) == rec_end - log.rec_offsets[user] == position
            seen += 1
    assert seen == len(log.rec_items)


def test_the_search_face_of_a_purchase_has_no_history_of_itself_either(planted):
    log = planted
    users = np.repeat(np.arange(log.num_users + 1), np.diff(log.search_offsets))
    for search, (user, time) in enumerate(zip(users, log.search_times, strict=True)):
        clicks = slice(log.rec_offsets[user], log.rec_offsets[user + 1])
        searches = np.arange(log.search_offsets[user], log.search_offsets[user + 1])
        earlier_items = log.rec_items[clicks][log.rec_times[clicks] < time]
        earlier = searches[log.search_times[searches] < time]
        assert log.click_items[log.click_offsets[search]] not in earlier_items
        assert len(earlier_items) == len(earlier) == time
        assert words_of(log, search)[0] not in [words_of(log, s)[0] for s in earlier]


@pytest.mark.parametrize("name", ["leave_one_out", "global_time"])
def test_no_face_of_a_held_out_purchase_is_in_a_training_history(planted, name):
    log = planted
    parts = splits.split_log(log, name, min_history=0)
    held_out = np.concatenate([parts.validation.target_row, parts.test.target_row])
    # Items are unique to a purchase, so that an item names both faces.
    faces = set(log.rec_items[held_out].tolist())
    assert faces
    for user, rec_end, search_end in zip(
        parts.train.user, parts.train.rec_end, parts.train.search_end, strict=True
    ):
        searches = slice(log.click_offsets[log.search_offsets[user]], log.click_offsets[search_end])
        assert not faces & set(log.rec_items[log.rec_offsets[user] : rec_end].tolist())
        assert not faces & set(log.click_items[searches].tolist())


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("queries.tsv", None, "expected queries.tsv in .* found no such file"),
        ("sequences.tsv", "0 1 2\n", "user id TAB items in line 1 of .*sequences.tsv"),
        ("sequences.tsv", "0\t1\n-5\t1\n", "in line 2 of .*sequences.tsv, found '-5"),
        ("sequences.tsv", "0\t1 9\n", "items of items.jsonl in line 1 .* found '9'"),
        ("sequences.tsv", "0\t1 -1\n", "items of items.jsonl in line 1 .* found '-1'"),
        ("sequences.tsv", "0\t1\n0\t1\n", "one line a user in line 2"),
        ("sequences.tsv", "0\t\n", "expected clicks in the log of amazon_beauty"),
        ("items.jsonl", '{"item": 1, "query_ids": [0]}\n{"item": 2', "JSON object .* in line 2"),
        ("items.jsonl", '{"item": 1}\n', '"query_ids" in line 1'),
        ("items.jsonl", '{"item": -1, "query_ids": []}\n', "item id of 0 or more in line 1"),
        ("items.jsonl", '{"item": 1, "query_ids": [8]}\n', "query ids of queries.tsv .* '8'"),
        ("items.jsonl", '{"item": 1, "query_ids": "0"}\n', '"query_ids" in line 1'),
        ("items.jsonl", '{"item": 1, "query_ids": {"0": 1}}\n', '"query_ids" in line 1'),
        ("items.jsonl", '{"item": 1, "query_ids": [0]}\n' * 2, "one line an item in line 2"),
        ("queries.tsv", "0\ta\n0\tb\n", "one line a query in line 2"),
        ("queries.tsv", "9" * 5000 + "\ta\n", "a query id of at most 18 digits in line 1"),
        ("queries.tsv", "hair care\n", "query id TAB text in line 1 of .*queries.tsv"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, name, text, found):
    folder = write(tmp_path / "raw", {0: [1]}, {1: [0]}, {0: "hair care"})
    path = pathlib.Path(folder) / name
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(UserError, match=found) as error:
        amazon_beauty.read_amazon_beauty(folder)
    assert "\n" not in str(error.value)


def test_only_newlines_end_lines_and_half_a_surrogate_pair_is_replaced(tmp_path):
    folder = pathlib.Path(write(tmp_path / "raw", {0: [1, 2]}, {1: [0], 2: [0]}, {0: "hair care"}))
    expected = amazon_beauty.read_amazon_beauty(str(folder))
    titles = ["Soap\u2028bar\x85", "half \ud800"]
    records = [
        {"item": i, "query_ids": [0], "title": title, "brand": title, "price": True}
        for i, title in enumerate(titles, 1)
    ]
    # JSON may hold U+2028 as it is, and halves of pairs as escapes.
    lines = [json.dumps(records[0], ensure_ascii=False), json.dumps(records[1])]
    (folder / "items.jsonl").write_text("\ufeff" + "\r\n".join(lines) + "\n", encoding="utf-8")
    for name in ("queries.tsv", "sequences.tsv"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    log = amazon_beauty.read_amazon_beauty(str(folder))
    validate_log(log)
    assert log.hash == expected.hash
    assert log.item_texts() == ["Soap\u2028bar Soap\u2028bar", "half \ufffd half \ufffd"]
    # True is no price.
    assert log.facts(1) == {"title": "Soap\u2028bar", "brand": "Soap\u2028bar"}


@pytest.mark.parametrize("item", ["true", "1.5", "null", '"\\ud800"', "[1]", '"x"', "1e400"])
def test_items_that_are_no_numbers_are_one_line(tmp_path, item):
    folder = pathlib.Path(write(tmp_path / "raw", {0: [1]}, {1: [0]}, {0: "hair care"}))
    with open(folder / "items.jsonl", "a", encoding="utf-8") as file:
        file.write(f'{{"item": {item}, "query_ids": []}}\n')
    with pytest.raises(UserError, match=r"a JSON object with .* in line 2 of") as error:
        amazon_beauty.read_amazon_beauty(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the research data in {REAL.name}, absent")
def test_the_real_data():
    log = amazon_beauty.read_amazon_beauty(str(REAL))
    validate_log(log)
    assert (log.num_users, log.num_items, len(log.rec_items)) == (22_363, 12_101, 198_502)
    parts = splits.split_log(log, "leave_one_out")
    splits.check_leakage(log, parts)
    # Every user has at least 5 purchases; the first of each has no history to train with.
    assert len(parts.test) == 22_363 and len(parts.validation) == 5000
    assert len(parts.train) == 198_502 - 3 * 22_363
