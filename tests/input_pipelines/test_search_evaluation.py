"""Searches that are held out, and their candidate lists: by hand, and BM25 by its formula."""

import collections
import math

import numpy as np
import pytest

from core.errors import UserError
from input_pipelines import candidates
from input_pipelines.bm25 import ItemTextIndex, nearest_negatives
from input_pipelines.log import RawEvents, build_log
from input_pipelines.search_task import held_out_searches, targets, training_searches
from input_pipelines.segmenters import characters
from input_pipelines.splits import split_log

NOTHING = np.zeros(0, np.int32)
TEXTS = {f"i{i}": f"tool {'red ' * (i % 4)}kind{i % 7} model{i}" for i in range(120)}


def log_of(search_user, search_time, search_words, search_clicks):
    """Users a, b and c click at 10..50: 40 validates, 50 tests."""
    return build_log(
        "tiny",
        RawEvents(
            click_user=["a"] * 5 + ["b"] * 5 + ["c"] * 5,
            click_item=[f"i{i}" for i in range(15)],
            click_time=[10, 20, 30, 40, 50] * 3,
            search_user=search_user,
            search_time=search_time,
            search_words=search_words,
            search_clicks=search_clicks,
            items=list(TEXTS),
            item_texts=TEXTS,
        ),
    )


@pytest.fixture(scope="module")
def log():
    # a's searches are faces of its clicks; b has two between its last clicks; of c's one is a face
    # of its validation click and nothing follows.
    return log_of(
        ["a", "a", "a", "b", "b", "b", "b", "c"],
        [20, 40, 50, 35, 42, 44, 46, 40],
        [["w"], ["kind3"], ["kind4"], ["red"], ["red"], ["kind1"], [], ["kind5"]],
        [["i1"], ["i3"], ["i4"], ["i20"], ["i21"], ["i22", "i23"], ["i24"], ["i13"]],
    )


def shown(log, examples):
    users, items = log.user_ids[examples.user], log.item_ids[examples.item]
    times = np.asarray(log.search_times)[examples.target_row]
    return list(zip(users.tolist(), times.tolist(), items.tolist()))


def test_held_out_searches_by_hand(log):
    splits = split_log(log, "leave_one_out")
    parts = {s: held_out_searches(log, splits, s) for s in ("validation", "test")}
    # The search at 46 has no words; both clicks of the one at 44 are targets.
    assert shown(log, parts["validation"]) == [("a", 40, "i3"), ("b", 42, "i21"), ("c", 40, "i13")]
    assert shown(log, parts["test"]) == [("a", 50, "i4"), ("b", 44, "i22"), ("b", 44, "i23")]
    trained = training_searches(log, splits)
    rows = [set(part.target_row.tolist()) for part in (trained, *parts.values())]
    assert not (rows[0] & rows[1] | rows[0] & rows[2] | rows[1] & rows[2])
    # A test search's history ends before it: three clicks before 40, four before 50.
    tested = parts["test"]
    assert (tested.rec_end - log.rec_offsets[tested.user]).tolist() == [4, 4, 4]
    assert (tested.search_end - log.search_offsets[tested.user]).tolist() == [2, 2, 2]


def test_under_global_time_the_cut_of_the_test_clicks_holds(log):
    splits = split_log(log, "global_time")
    # The .8 quantile of the click times is 42, so the first click that does not train is at 50.
    validation, test = (held_out_searches(log, splits, s) for s in ("validation", "test"))
    assert shown(log, test) == [("a", 50, "i4")] and len(validation) == 0
    assert max(time for _, time, _ in shown(log, training_searches(log, splits))) == 44


def test_lists_of_searches_are_saved_and_without_the_target(log, tmp_path):
    splits = split_log(log, "leave_one_out")
    folder = str(tmp_path)
    examples = held_out_searches(log, splits, "test")
    for protocol in ("neg99", "bm25_99"):
        lists = candidates.evaluation_candidates(
            log, splits, "test", protocol, 0, folder, task="search"
        )
        assert lists.shape == (3, 100) and lists.dtype == np.int32
        assert lists[:, 0].tolist() == examples.item.tolist()
        assert all(len(set(row)) == 100 for row in lists.tolist()) and lists.min() > 0
        assert candidates.ranked(lists).all()
        # Not i22 and i23 of one search beside each other, nor what their users touched up to then.
        own = [
            {"i0", "i1", "i2", "i3", "i4"},
            *[{f"i{i}" for i in (5, 6, 7, 8, 20, 21, 22, 23)}] * 2,
        ]
        for row, touched in zip(lists, own):
            assert not touched & {str(name) for name in log.item_ids[row[1:]]}
        again = candidates.evaluation_candidates(
            log, splits, "test", protocol, 0, folder, task="search"
        )
        np.testing.assert_array_equal(lists, again)
    # Nine clicked items are too few to draw 99 from.
    lists = candidates.evaluation_candidates(
        log, splits, "test", "neg99pop", 0, folder, task="search"
    )
    assert lists[:, 1:].max() == 0 and not candidates.ranked(lists).any()
    (saved,) = tmp_path.glob("search-*bm25_99*.npy")
    np.save(saved, lists[::-1])
    with pytest.raises(UserError, match="to draw them again"):
        candidates.evaluation_candidates(log, splits, "test", "bm25_99", 0, folder, task="search")
    with pytest.raises(UserError, match="neg99, neg99pop for recommendation, found 'bm25_99'"):
        candidates.evaluation_candidates(log, splits, "test", "bm25_99", 0, folder)


def test_seen_items_of_searches_leave_the_target_in(log):
    splits = split_log(log, "leave_one_out")
    examples = held_out_searches(log, splits, "validation")
    seen = candidates.seen_items(log, examples)
    items, times = targets(log, examples)
    assert times.tolist() == [40, 42, 40]
    # a: i0, i1, i2 were clicked before 40, and the target i3 was not.
    names = [{log.item_ids[i] for i in row if i} for row in seen.tolist()]
    assert names[0] == {"i0", "i1", "i2"}
    # b at 42: its clicks at 10..40, and i20, which it found at 35.
    assert names[1] == {"i5", "i6", "i7", "i8", "i20"}
    assert all(item not in row for item, row in zip(items, seen))


def test_other_clicks_of_the_same_search_are_left_out(log):
    splits = split_log(log, "leave_one_out")
    examples = held_out_searches(log, splits, "test")  # i4; then i22 and i23 of one search
    names = [
        {str(log.item_ids[i]) for i in row if i} for row in candidates.other_clicks(log, examples)
    ]
    assert names == [set(), {"i23"}, {"i22"}]
    seen = [
        {str(log.item_ids[i]) for i in row if i} for row in candidates.seen_items(log, examples)
    ]
    assert seen[1] == {"i5", "i6", "i7", "i8", "i20", "i21", "i23"}
    assert seen[2] == {"i5", "i6", "i7", "i8", "i20", "i21", "i22"}
    # A click alone has none.
    assert candidates.other_clicks(log, splits.test).tolist() == [[0]] * 3


def lucene_bm25(query, texts, k1=1.5, b=0.75):
    """Robertson's BM25 with Lucene's idf, written down from the formula."""
    words = [characters(text) for text in texts]
    mean = sum(map(len, words)) / len(words)
    frequency = collections.Counter(word for one in words for word in set(one))
    scores = []
    for one in words:
        score = 0.0
        for word in query:
            count = one.count(word)
            idf = math.log(1 + (len(words) - frequency[word] + 0.5) / (frequency[word] + 0.5))
            score += idf * count / (count + k1 * (1 - b + b * len(one) / mean))
        scores.append(score)
    return np.array(scores)


def test_scores_are_those_of_the_formula():
    texts = [TEXTS[f"i{i}"] for i in range(120)]
    index = ItemTextIndex(texts, characters, seed=0)
    for query in (["red", "kind3"], ["model5"], ["unknown", "red"]):
        np.testing.assert_allclose(index.scores(query), lucene_bm25(query, texts), rtol=1e-5)
    assert not index.scores(["unknown"]).any()


def test_the_nearest_without_the_target():
    texts = [TEXTS[f"i{i}"] for i in range(120)]
    index = ItemTextIndex(texts, characters, seed=0)
    query = ["red", "kind3"]
    expected = lucene_bm25(query, texts)
    target = int(np.argmax(expected)) + 1
    negatives = nearest_negatives(index, [query], np.array([target]), [NOTHING], 20)[0]
    assert target not in negatives and len(set(negatives.tolist())) == 20
    others = np.sort(np.delete(expected, target - 1))[::-1]
    np.testing.assert_allclose(expected[negatives - 1], others[:20], rtol=1e-5)
    # What is left out makes room for the next; where too few are left there are none.
    others = nearest_negatives(index, [query], np.array([target]), [negatives[[0, 3, 19]]], 20)[0]
    assert others[:17].tolist() == np.delete(negatives, [0, 3, 19]).tolist()
    assert not set(others[17:].tolist()) & {target, *negatives.tolist()}
    most = np.setdiff1d(np.arange(1, 121), [target, *negatives[:19]])
    assert nearest_negatives(index, [query], np.array([target]), [most], 20)[0].tolist() == [0] * 20
    # Without a known word all are equal: neither the first items nor the same under another seed.
    orders = [ItemTextIndex(texts, characters, seed=s).ranking(["unknown"]) for s in (0, 1)]
    assert orders[0].tolist() != sorted(orders[0].tolist()) and (orders[0] != orders[1]).any()


def test_a_catalogue_without_text_or_too_small():
    with pytest.raises(UserError, match="found none on all 3"):
        ItemTextIndex(["", "", ""], characters, seed=0)
    index = ItemTextIndex(["red pot", "tea"], characters, seed=0)
    assert not nearest_negatives(index, [["red"]], np.array([1]), [NOTHING], 99).any()
