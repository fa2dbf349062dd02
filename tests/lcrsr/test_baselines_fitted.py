"""Popularity and item-kNN by hand."""

import numpy as np
import pytest
import scipy.sparse

from core.best_items import best_unseen
from core.errors import UserError
from lcrsr.baselines import item_knn, popularity
from lcrsr.baselines.fitted import FittedEvaluator


def clicks(*users):
    """Training clicks of users 1..n on items 1..4."""
    rows = [(u, i) for u, items in enumerate(users, start=1) for i in items]
    return scipy.sparse.csr_array(
        (np.ones(len(rows)), tuple(np.array(rows).T)), shape=(len(users) + 1, 5)
    )


def batch(history, candidates):
    return {
        "user": np.ones(1, np.int32),
        "rec_items": np.array([history], np.int32),
        "candidates": np.array([candidates], np.int32),
        "mask": np.ones(1, np.float32),
    }


CLICKS = clicks([1, 2], [1, 2, 3], [2, 3], [4])


def test_popularity_counts_training_clicks():
    scorer = popularity.fit(popularity.Settings(), CLICKS)
    assert scorer.scores(batch([0, 0], [1]))[0].tolist() == [0, 2, 3, 2, 1]


def test_item_knn_by_hand():
    scorer = item_knn.fit(item_knn.Settings(decay=0.5, history_power=0.0), CLICKS)
    # Cosines: (1,2) 2/sqrt(2*3), (1,3) 1/2, (2,3) 2/sqrt(3*2); item 4 stands alone.
    near = 2 / np.sqrt(6)
    scores = scorer.scores(batch([1, 3, 0], [1]))[0]
    # Item 3 is the latest, weight 1; item 1 weighs 1/2. No item is its own neighbour.
    np.testing.assert_allclose(scores[1:4], [0.5, 0.5 * near + near, 0.25], atol=1e-6)
    assert scores[4] < 0


def test_what_is_no_neighbour_stands_below_in_the_order_of_popularity():
    scorer = item_knn.fit(item_knn.Settings(decay=0.5, history_power=0.0), CLICKS)
    # Item 4 has no neighbour: 2 has three clicks, 1 and 3 two each, 4 itself one.
    for history in ([0, 0], [4, 0]):
        assert scorer.scores(batch(history, [1]))[0, 1:].tolist() == [-2.0, -1.0, -2.0, -3.0]
    # The neighbours of 1 are 2 and 3, however popular; then itself, as no neighbour, before 4.
    scores = scorer.scores(batch([1, 0], [1]))[0]
    assert scores[2] > scores[3] > 0 > scores[1] > scores[4]
    popular = popularity.fit(popularity.Settings(), CLICKS)
    empty = batch([0, 0], [1])
    order = np.argsort(-scorer.scores(empty)[0, 1:], kind="stable")
    np.testing.assert_array_equal(order, np.argsort(-popular.scores(empty)[0, 1:], kind="stable"))


def test_item_knn_counts_events_and_not_places():
    scorer = item_knn.fit(item_knn.Settings(decay=0.5, history_power=0.0), CLICKS)
    with_hole = scorer.scores(batch([0, 1, 3, 0], [1]))
    np.testing.assert_array_equal(with_hole, scorer.scores(batch([1, 3, 0, 0], [1])))


def test_history_power_makes_long_histories_weigh_less():
    scorer = item_knn.fit(item_knn.Settings(decay=1.0, history_power=1.0), CLICKS)
    # (1,2): 1/2 + 1/3 over sqrt(5/6 * 4/3): users weigh 1/2, 1/3, 1/2.
    expected = (1 / 2 + 1 / 3) / np.sqrt((1 / 2 + 1 / 3) * (1 / 2 + 1 / 3 + 1 / 2))
    assert scorer.scores(batch([1], [1]))[0, 2] == pytest.approx(expected, abs=1e-6)


def test_full_ranking_leaves_seen_items_out_and_counts_ties_in_expectation():
    evaluator = FittedEvaluator(popularity.fit(popularity.Settings(), CLICKS), ["hr@1", "hr@2"])
    # Target 3 ties with 1; 2 is seen. Half the random orders put it first.
    pair = (batch([2], [3]), np.array([[2, 0]], np.int32))
    assert evaluator.full(None, None, [pair]).means() == {"hr@1": 0.5, "hr@2": 1.0}
    sampled = evaluator.sampled(None, None, [batch([0], [3, 2, 4])]).means()
    assert sampled == {"hr@1": 0.0, "hr@2": 1.0}
    items, scores = evaluator.top_k(None, None, pair[0], pair[1], 2)
    assert items.tolist() == [[1, 3]] and scores.tolist() == [[2.0, 2.0]]
    with pytest.raises(UserError, match="top_k of at most 4"):
        evaluator.top_k(None, None, pair[0], pair[1], 5)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="expected decay"):
        item_knn.Settings(decay=0.0, history_power=0.0)


def test_the_best_unseen_items_in_order():
    scores = np.array([[9, 1, 3, 3, 2, 3], [9, 0, 0, 0, 0, 0]], np.float32)
    # Item 5 is seen, item 2 is the target, which stays though it is listed as seen.
    seen, target = np.array([[5, 2], [0, 0]]), np.array([2, 4])
    assert best_unseen(scores, seen, target, 3).tolist() == [[2, 3, 4], [1, 2, 3]]
    # One user has nothing left: zeros.
    seen = np.array([[1, 3, 4, 5], [0, 0, 0, 0]])
    assert best_unseen(scores, seen, target, 9).tolist() == [[2, 0, 0, 0, 0], [1, 2, 3, 4, 5]]
