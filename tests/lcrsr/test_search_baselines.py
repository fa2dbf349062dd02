"""Floors of the search task, worked by hand."""

import math

import numpy as np
import pytest
import scipy.sparse

from core.errors import UserError
from lcrsr.baselines import item_knn
from lcrsr.search_baselines.rankers import (
    ByQuery,
    OrPopular,
    QueryKNN,
    QueryPopularity,
    TextSimilarity,
)

TEA, POT = ("red", "tea"), ("pot",)
# Clicked after red tea: item 1 three times, item 2 once; after pot: item 3.
POPULARITY = QueryPopularity([TEA, TEA, POT, TEA, TEA], np.array([1, 2, 3, 1, 1]), 4)
NOBODY = np.zeros((1, 2), np.int32)


def test_popularity_counts_the_clicks_after_the_same_query():
    scores = POPULARITY.scores([TEA, POT, ("tea", "red")], np.zeros((3, 2), np.int32))
    # After any query: item 1 three times, items 2 and 3 once, item 4 never.
    assert scores[:, 1:].tolist() == [[3, 1, -2, -3], [-1, -2, 1, -3], [-1, -2, -2, -3]]
    counts = POPULARITY.counts([TEA, POT, ("tea", "red")])
    assert counts.tolist() == [[0, 3, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]]


def knn():
    # Two users with items 1 and 2, one with 2 and 4: cosines 2 / sqrt(2 * 3) and 1 / sqrt(3 * 1).
    clicks = np.zeros((4, 5))
    clicks[1, [1, 2]] = clicks[2, [1, 2]] = clicks[3, [2, 4]] = 1
    settings = item_knn.Settings(decay=1.0, history_power=0.0)
    return item_knn.fit(settings, scipy.sparse.csr_array(clicks))


def test_neighbours_of_the_history_decide_within_the_query_and_never_across():
    of_two, four = 2 / math.sqrt(6), 1 / math.sqrt(3)
    history = np.array([[2, 0]], np.int32)
    scores = QueryKNN(POPULARITY, knn(), 2.0).scores([TEA], history)
    # Item 1: 1 + 2 * 3/4 + its cosine with 2; item 2 itself is no neighbour of its own.
    expected = [2.5 + of_two, 1.5, -2.0, four / (1 + four)]
    np.testing.assert_allclose(scores[:, 1:], [expected], rtol=1e-6)
    assert QueryKNN(POPULARITY, knn(), 0.0).scores([TEA], history)[0, 2] == 1.0 > expected[3]
    np.testing.assert_allclose(
        QueryKNN(POPULARITY, knn(), 2.0).scores([TEA, ("ink",)], np.repeat(NOBODY, 2, 0))[:, 1:],
        [[2.5, 1.5, -2, -3], [-1, -2, -2, -3]],  # what is not known by its clicks after any query
    )
    with pytest.raises(ValueError, match="at least 0, found -1"):
        QueryKNN(POPULARITY, knn(), -1)


TEXTS = ["red tea", "green tea", "", "tea pot pot"]


def test_tfidf_by_hand():
    scores = TextSimilarity(TEXTS, str.split, width=None, seed=0).scores([TEA, ("ink",)], NOBODY)
    # Smoothed idf ln((1 + 4) / (1 + n)) + 1: red, green and pot 1.916, tea 1.223; tf 1 + ln 2.
    red, tea = math.log(5 / 2) + 1, math.log(5 / 4) + 1
    length, pot = math.hypot(red, tea), (1 + math.log(2)) * red
    expected = [0, 1, tea * tea / length**2, 0, tea * tea / length / math.hypot(tea, pot)]
    np.testing.assert_allclose(scores, [expected, [0] * 5], rtol=1e-6)


def test_singular_vectors_order_texts_as_their_words_do():
    scores = TextSimilarity(TEXTS, str.split, width=2, seed=0).scores([TEA], NOBODY)[0]
    assert scores.shape == (5,) and scores[0] == 0 and scores[3] == 0
    assert scores[1] == pytest.approx(1.0, abs=0.05) and scores[1] > scores[4]
    with pytest.raises(UserError, match="text on the items, found none on all 2"):
        TextSimilarity(["", ""], str.split, width=None, seed=0)


@pytest.mark.parametrize("width", [None, 2])
def test_a_query_without_a_known_word_is_answered_by_popularity(width):
    scorer = OrPopular(TextSimilarity(TEXTS, str.split, width=width, seed=0), POPULARITY)
    scores = scorer.scores([TEA, ("ink",), ()], np.repeat(NOBODY, 3, 0))
    assert scores[1:, 1:].tolist() == [[-1, -2, -2, -3]] * 2
    alone = TextSimilarity(TEXTS, str.split, width=width, seed=0).scores([TEA], NOBODY)
    np.testing.assert_array_equal(scores[:1], alone)


def test_a_function_of_the_query_is_asked_once_for_each():
    asked = []

    def score(words):
        asked.append(words)
        return np.arange(3.0)

    scores = ByQuery(score).scores([TEA, POT, TEA], np.zeros((3, 1), np.int32))
    assert sorted(asked) == [POT, TEA] and scores.tolist() == [[0, 0, 1, 2]] * 3
