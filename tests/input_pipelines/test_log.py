"""The log: numbering, sorting, saving, and what is refused."""

import dataclasses
import itertools
import json
import os

import numpy as np
import pytest

from core import checksums
from core.errors import UserError
from input_pipelines import data_card, prepared_log
from input_pipelines import log as log_lib
from input_pipelines.log_checks import validate_log


def raw(**changes):
    """Two users; ann clicks b, a; bob clicks a; ann's second search has nothing in it."""
    events = dict(
        click_user=["bob", "ann", "ann"],
        click_item=["a", "a", "b"],
        click_time=[7, 9, 3],
        search_user=["ann", "ann", "bob"],
        search_time=[8, 5, 2],
        search_words=[["tea", "cup"], [], []],
        search_clicks=[[], [], ["c", "a"]],
        items=["d"],
    )
    return log_lib.RawEvents(**(events | changes))


def small_log():
    return log_lib.build_log("tiny", raw())


def test_names_become_ids_from_one_and_events_stand_in_time_order():
    log = small_log()
    # Names are numbered in their own order: ann 1, bob 2; a..d 1..4; cup 1, tea 2.
    assert log.user_ids.tolist() == ["", "ann", "bob"]
    assert log.item_ids.tolist() == ["", "a", "b", "c", "d"]
    assert log.words.tolist() == ["", "cup", "tea"]
    assert (log.num_users, log.num_items, log.num_words) == (2, 4, 2)
    assert log.rec_offsets.tolist() == [0, 0, 2, 3]
    assert log.rec_items.tolist() == [2, 1, 1]
    assert log.rec_times.tolist() == [3, 9, 7]
    # Ann's search at 5 has neither words nor clicks and is gone.
    assert log.search_offsets.tolist() == [0, 0, 1, 2]
    assert log.search_times.tolist() == [8, 2]
    assert log.word_offsets.tolist() == [0, 2, 2]
    assert log.word_ids.tolist() == [2, 1]
    assert log.click_offsets.tolist() == [0, 0, 2]
    assert log.click_items.tolist() == [3, 1]
    validate_log(log)


def test_the_same_click_twice_is_one_and_at_another_time_is_two():
    events = raw(
        click_user=["ann"] * 3, click_item=["a"] * 3, click_time=[4, 4, 5], search_words=[[]] * 3
    )
    assert log_lib.build_log("tiny", events).rec_times.tolist() == [4, 5]


def test_a_user_may_have_only_one_search_or_only_one_click():
    events = raw(
        click_user=["ann"],
        click_item=["a"],
        click_time=[1],
        search_user=["bob"],
        search_time=[1],
        search_words=[["tea"]],
        search_clicks=[[]],
    )
    log = log_lib.build_log("tiny", events)
    assert log.rec_offsets.tolist() == [0, 0, 1, 1]
    assert log.search_offsets.tolist() == [0, 0, 0, 1]
    validate_log(log)


def test_a_log_without_any_search_is_legal():
    events = raw(search_user=[], search_time=[], search_words=[], search_clicks=[])
    log = log_lib.build_log("tiny", events)
    assert log.search_offsets.tolist() == [0, 0, 0, 0]
    assert log.word_offsets.tolist() == [0] and log.click_offsets.tolist() == [0]
    validate_log(log)
    assert data_card.describe(log)["searches"] == 0


def test_equal_times_are_ordered_neither_by_id_nor_by_row():
    names = [f"i{n:02d}" for n in range(40)]

    def order(items):
        events = raw(
            click_user=["ann"] * 40, click_item=items, click_time=[1] * 40, search_clicks=[[]] * 3
        )
        log = log_lib.build_log("tiny", events)
        return log.item_ids[log.rec_items].tolist()

    ordered = order(names)
    assert sorted(ordered) == names
    assert order(names[::-1]) == ordered
    # An order by id has 39 ascents, a random one has about 20 (standard deviation 1.8).
    assert 10 < sum(a < b for a, b in itertools.pairwise(ordered)) < 30
    first, second = log_lib.tie_break(names), log_lib.tie_break(names, seed=1)
    assert np.argsort(first).tolist() != np.argsort(second).tolist()


def test_ids_that_are_whole_numbers_make_the_log_of_their_decimal_text():
    rng = np.random.default_rng(0)
    few = np.array([0, 2, 3, 10, 11, 100, 1999, 2**63 - 1])  # 10 < 2 as text
    counts = {kind: rng.integers(0, 4, 30) for kind in ("search_clicks", "search_unclicked")}
    numbers = {
        **{name: rng.choice(few, 60) for name in ("click_user", "click_item")},
        **{"search_user": rng.choice(few, 30), "items": few[:5]},
        **{name: rng.choice(few, counts[name].sum()) for name in counts},
    }
    ends = {name: np.concatenate([[0], np.cumsum(counts[name])]) for name in counts}
    text = {name: values.astype(str).tolist() for name, values in numbers.items()}
    for name in counts:
        text[name] = [text[name][a:b] for a, b in itertools.pairwise(ends[name])]
        numbers[name] = log_lib.Ragged(ends[name], numbers[name])
    # Few times and few words, so that many events are told apart by their items alone.
    others = dict(
        click_time=rng.integers(0, 3, 60),
        search_time=rng.integers(1, 3, 30),
        search_begins=rng.integers(0, 2, 30),
        search_words=[["tea"][: int(n)] for n in rng.integers(0, 2, 30)],
        item_texts={"10": "ten"},
        user_profiles={"2": {"age": "7"}},
    )
    expected = log_lib.build_log("tiny", raw(**text, **others))
    log = log_lib.build_log("tiny", raw(**numbers, **others))
    validate_log(log)
    assert log.item_ids.tolist()[1:4] == ["0", "10", "100"] and log.hash == expected.hash
    for field in dataclasses.fields(log):
        np.testing.assert_array_equal(getattr(log, field.name), getattr(expected, field.name))


def test_the_hash_depends_on_content_and_not_on_the_order_of_rows():
    reversed_rows = raw(
        click_user=["ann", "ann", "bob"], click_item=["b", "a", "a"], click_time=[3, 9, 7]
    )
    assert log_lib.build_log("tiny", reversed_rows).hash == small_log().hash
    assert log_lib.build_log("tiny", raw(click_time=[7, 9, 4])).hash != small_log().hash
    assert log_lib.build_log("tiny", raw(items=["e"])).hash != small_log().hash


def test_saved_and_loaded_it_is_the_same_and_memory_mapped(tmp_path):
    log = dataclasses.replace(small_log(), is_sample=True)
    prepared_log.save_log(log, str(tmp_path / "log"))
    loaded = prepared_log.load_log(str(tmp_path / "log"))
    for field in dataclasses.fields(log):
        expected, value = getattr(log, field.name), getattr(loaded, field.name)
        if isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(value, expected)
            assert value.dtype == expected.dtype
        else:
            assert value == expected
    assert log_lib.content_hash(loaded) == loaded.hash == log.hash
    assert os.listdir(tmp_path) == ["log"]


def test_large_arrays_are_mapped_and_cannot_be_written(tmp_path):
    events = raw(click_user=["ann"] * 99, click_item=["a"] * 99, click_time=list(range(99)))
    prepared_log.save_log(log_lib.build_log("tiny", events), str(tmp_path / "log"))
    times = prepared_log.load_log(str(tmp_path / "log")).rec_times
    assert isinstance(times.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        times[0] = 1


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    saved = []
    real = np.save

    def full_disk(file, array, **options):
        saved.append(file)
        if len(saved) == 5:
            raise OSError(28, "No space left on device")
        real(file, array, **options)

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        prepared_log.save_log(small_log(), str(tmp_path / "log"))
    assert len(saved) == 5 and os.listdir(tmp_path) == []


def test_the_folder_appears_whole(tmp_path, monkeypatch):
    directory, seen = str(tmp_path / "log"), []
    real = os.replace

    def rename(source, target):
        if os.path.isdir(source):  # meta.json takes its name within the folder
            seen.append((os.path.exists(target), sorted(os.listdir(source))))
        real(source, target)

    monkeypatch.setattr(os, "replace", rename)
    prepared_log.save_log(small_log(), directory)
    # Fifteen arrays and meta.json are written before anything stands under the final name.
    assert seen == [(False, sorted(os.listdir(directory)))] and len(seen[0][1]) == 16


def test_the_second_of_two_savers_keeps_the_first_ones_folder(tmp_path):
    directory = str(tmp_path / "log")
    prepared_log.save_log(small_log(), directory)
    prepared_log.save_log(small_log(), directory)
    assert prepared_log.load_log(directory).hash == small_log().hash
    assert os.listdir(tmp_path) == ["log"]


def damage(directory, name, how):
    path = os.path.join(directory, name)
    if how == "cut":
        os.truncate(path, os.path.getsize(path) - 4)
    elif how == "remove":
        os.remove(path)
    else:
        with open(path, "w", encoding="utf-8") as file:
            file.write(how)


@pytest.mark.parametrize(
    ("name", "how", "found"),
    [
        ("rec_items.npy", "cut", "bytes in .*rec_items.npy, found 136 bytes"),
        ("click_items.npy", "remove", "click_items.npy, found no such file"),
        ("meta.json", "{", "a prepared log at .*meta.json, found a file that cannot be read"),
        ("meta.json", "{}", "prepared in format 2 in .*, found 1"),
    ],
)
def test_damaged_folders_are_refused_in_one_line(tmp_path, name, how, found):
    directory = str(tmp_path / "log")
    prepared_log.save_log(small_log(), directory)
    damage(directory, name, how)
    with pytest.raises(UserError, match=found) as error:
        prepared_log.load_log(directory)
    assert "\n" not in str(error.value) and f"remove {directory}" in str(error.value)


def test_a_folder_without_its_description_is_no_prepared_log(tmp_path):
    directory = str(tmp_path / "log")
    prepared_log.save_log(small_log(), directory)
    damage(directory, "meta.json", "remove")
    with pytest.raises(UserError, match=r"with meta\.json in .*log, found none; pass a folder"):
        prepared_log.load_log(directory)


@pytest.mark.parametrize("changes", [{"time_unit": "hours"}, {"time_unit": []}, {"reading": [1]}])
def test_what_the_reader_noted_is_checked_when_opened(tmp_path, changes):
    directory = tmp_path / "log"
    prepared_log.save_log(small_log(), str(directory))
    assert prepared_log.load_log(str(directory)).reading == {"searches_left_out_as_empty": 1}
    meta = json.loads((directory / "meta.json").read_text())
    del meta["checksum"]
    checksums.write_sealed(str(directory / "meta.json"), meta | changes)
    with pytest.raises(UserError, match=r"expected a log's name, .* reading in .*meta\.json"):
        prepared_log.load_log(str(directory))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"rec_items": [2, 0, 1]}, "rec_items of log tiny from 1 to 4, found 0"),
        ({"rec_items": [2, -3, 1]}, "rec_items of log tiny from 1 to 4, found -3"),
        ({"click_items": [3, 5]}, "click_items of log tiny from 1 to 4, found 5"),
        ({"word_ids": [3, 1]}, "word_ids of log tiny from 1 to 2, found 3"),
        ({"rec_times": [9, 3, 7]}, "clicks of each user.*found row 1 earlier than row 0"),
        ({"rec_times": [3, 9]}, "found 2 times of 3 clicks"),
        ({"rec_offsets": [0, 2, 0, 3]}, "ascending rec_offsets"),
        ({"rec_offsets": [0, 0, 2]}, "rec_offsets of log tiny to have 4 entries"),
        ({"word_offsets": [0, 2, 9]}, "word_offsets of log tiny.*ending in 9"),
        # A search without words and clicks left a hole in a history.
        ({"click_offsets": [0, 2, 2]}, "words or clicks in every search .* neither in search 1"),
    ],
)
def test_what_consumers_rely_on_is_checked(changes, found):
    arrays = {name: np.array(value) for name, value in changes.items()}
    with pytest.raises(UserError, match=found) as error:
        validate_log(dataclasses.replace(small_log(), **arrays))
    assert "\n" not in str(error.value)


def test_times_may_fall_between_users_and_not_within_the_last_one():
    # Ann's last click is at 9, bob's first at 7: legal. Bob's own searches must not fall.
    validate_log(small_log())
    changed = dataclasses.replace(
        small_log(), search_offsets=np.array([0, 0, 0, 2]), search_times=np.array([8, 2])
    )
    with pytest.raises(UserError, match="searches of each user"):
        validate_log(changed)


def test_the_card_counts():
    card = data_card.describe(small_log())
    assert (card["users"], card["items"], card["words"]) == (2, 4, 2)
    assert (card["clicks"], card["searches"]) == (3, 2)
    # One of the two searches has no click, the other no word.
    assert card["searches_without_click"] == card["searches_without_word"] == 0.5
    assert card["clicks_per_user"]["0.5"] == 1.5 and card["clicks_per_user"]["1"] == 2
    sample = data_card.describe(dataclasses.replace(small_log(), is_sample=True))
    assert sample["name"] == "tiny (sample data)"


def test_a_log_needs_a_click():
    with pytest.raises(UserError, match="expected clicks in the log of tiny, found none"):
        log_lib.build_log("tiny", raw(click_user=[], click_item=[], click_time=[]))


def raw_with_shown(**changes):
    """Ann's empty search is gone, with what was shown in it; d and e were never clicked."""
    shown = dict(
        search_unclicked=[["d", "b"], ["a"], ["e"]], search_places=["Rome", "Oslo", ""], items=[]
    )
    return raw(**(shown | changes))


def test_what_was_shown_and_where_stays_with_its_search():
    log = log_lib.build_log("tiny", raw_with_shown())
    assert log.item_ids.tolist() == ["", "a", "b", "c", "d", "e"]
    assert log.search_times.tolist() == [8, 2]
    # In the order of the page, not of the names.
    assert [log.unclicked(search).tolist() for search in (0, 1)] == [[4, 2], [5]]
    assert [log.place(search) for search in (0, 1)] == ["Rome", ""]
    # Oslo went with its search.
    assert log.places.tolist() == ["", "Rome"] and log.search_places.dtype == np.int32
    assert log.unclicked_items.dtype == np.int32 and log.unclicked_offsets.dtype == np.int64
    validate_log(log)
    card = data_card.describe(log)
    assert (card["shown_in_searches_without_click"], card["places"]) == (3, 1)


def test_a_source_that_does_not_say_what_was_shown_has_no_such_arrays(tmp_path):
    log = small_log()
    assert log.unclicked_items is None and log.places is None
    assert log.unclicked(0).tolist() == [] and log.place(0) == ""
    assert "places" not in data_card.describe(log)
    # A folder that was prepared without such arrays looks like this one.
    prepared_log.save_log(log, str(tmp_path / "log"))
    assert not [name for name in os.listdir(tmp_path / "log") if "unclicked" in name]
    assert prepared_log.load_log(str(tmp_path / "log")).search_places is None
    # Written down when there were none: prepared data and runs go by this hash.
    assert log.hash == "58f301afd44fbac0"


def test_what_was_shown_and_where_is_in_the_hash_and_is_saved(tmp_path):
    log = log_lib.build_log("tiny", raw_with_shown())
    hashes = {log.hash}
    for changes in (
        {"search_unclicked": [["b", "d"], ["a"], ["e"]]},
        {"search_unclicked": None, "items": ["d", "e"]},
        {"search_places": ["Roma", "Oslo", ""]},
        {"search_places": None},
        {"search_begins": [7, 3, 2]},
        {"user_profiles": {"ann": {"age": "30"}}},
        {"user_profiles": {"ann": {"age": "31"}}},
    ):
        hashes.add(log_lib.build_log("tiny", raw_with_shown(**changes)).hash)
    assert len(hashes) == 8
    prepared_log.save_log(log, str(tmp_path / "log"))
    loaded = prepared_log.load_log(str(tmp_path / "log"))
    assert log_lib.content_hash(loaded) == log.hash
    assert loaded.unclicked(0).tolist() == [4, 2] and loaded.place(0) == "Rome"


def test_searches_that_differ_only_in_what_was_shown_do_not_depend_on_rows():
    def built(order):
        pairs = [(["b"], "Rome"), (["d"], "Oslo"), (["c"], "")]
        events = raw(
            search_user=["ann"] * 3,
            search_time=[8] * 3,
            search_words=[["tea"]] * 3,
            search_clicks=[[]] * 3,
            search_unclicked=[pairs[i][0] for i in order],
            search_places=[pairs[i][1] for i in order],
        )
        return log_lib.build_log("tiny", events).hash

    assert built([0, 1, 2]) == built([2, 0, 1]) == built([1, 2, 0])


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"unclicked_items": [4, 2, 6]}, "unclicked_items of log tiny from 1 to 5, found 6"),
        ({"unclicked_items": [4, 0, 5]}, "unclicked_items of log tiny from 1 to 5, found 0"),
        ({"unclicked_offsets": [0, 3]}, "unclicked_offsets of log tiny to have 3 entries"),
        ({"unclicked_items": None}, "unclicked_offsets and unclicked_items .* no unclicked_items"),
        ({"search_places": None}, "search_places in log tiny, found no search_places"),
        ({"search_places": [1]}, "one place a search in log tiny, found 1 places of 2 searches"),
        ({"search_places": [2, 0]}, "search_places of log tiny from 0 to 1, found 2"),
        ({"search_places": [-1, 0]}, "search_places of log tiny from 0 to 1, found -1"),
    ],
)
def test_optional_columns_are_checked(changes, found):
    arrays = {name: None if v is None else np.array(v) for name, v in changes.items()}
    log = log_lib.build_log("tiny", raw_with_shown())
    with pytest.raises(UserError, match=found) as error:
        validate_log(dataclasses.replace(log, **arrays))
    assert "\n" not in str(error.value)
