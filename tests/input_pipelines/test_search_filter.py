"""Searches near a user's clicks stay, others leave no trace."""

import numpy as np
import pytest

from core.errors import UserError
from input_pipelines.search_filter import SearchFilter

# Items 1 and 2 point right and up, 3 left; words 1 to 3 likewise.
VECTORS = np.array([[0, 0], [1, 0], [0, 1], [-1, 0]], np.float32)


@pytest.fixture
def path(tmp_path):
    np.savez(tmp_path / "v.npz", item=VECTORS, word=2 * VECTORS)
    return str(tmp_path / "v.npz")


def batch():
    return {
        "rec_items": np.array([[1, 1, 0], [0, 0, 0]], np.int32),
        "rec_order": np.array([[0, 3, 0], [0, 0, 0]], np.int32),
        # Cosines with (1, 0): up 0, left -1, right and up sqrt(.5); then padding.
        "query_words": np.array([[[2, 0], [3, 3], [1, 2], [0, 0]], [[1, 0]] * 4], np.int32),
        "clicked_items": np.array([[[0], [3], [0], [0]], [[0]] * 4], np.int32),
        "search_order": np.array([[1, 2, 4, 0], [0, 1, 2, 3]], np.int32),
        "user": np.array([1, 2], np.int32),
    }


def test_what_is_above_the_threshold_moves_up(path):
    filtered = SearchFilter(path, 0.5)(batch())
    assert filtered["query_words"][0].tolist() == [[1, 2], [0, 0], [0, 0], [0, 0]]
    assert filtered["clicked_items"][0].tolist() == [[0]] * 4
    assert filtered["rec_order"][0].tolist() == [0, 1, 0]
    assert filtered["search_order"][0].tolist() == [2, 0, 0, 0]
    # Without clicks there is nothing to be near to: a cosine of 0.
    assert not filtered["query_words"][1].any() and not filtered["search_order"][1].any()
    assert filtered["query_words"].dtype == np.int32 and filtered["user"].tolist() == [1, 2]


def test_the_order_of_what_stays_is_kept(path):
    filtered = SearchFilter(path, -0.5)(batch())
    assert filtered["query_words"][0].tolist() == [[2, 0], [1, 2], [0, 0], [0, 0]]
    assert filtered["rec_order"][0].tolist() == [0, 2, 0]
    assert filtered["search_order"][0].tolist() == [1, 3, 0, 0]
    assert filtered["search_order"][1].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("threshold", [-1.0, 1.0])
def test_the_ends_keep_all_and_nothing(path, threshold):
    before = batch()
    filtered = SearchFilter(path, threshold)(before)
    if threshold == -1:
        for name, values in before.items():
            np.testing.assert_array_equal(filtered[name], values)
    else:
        assert not filtered["query_words"].any() and not filtered["clicked_items"].any()
        assert filtered["rec_order"][0].tolist() == [0, 1, 0]


def test_a_cosine_that_rounding_puts_above_1_is_1(tmp_path):
    # Users whose only search clicked what they clicked.
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((400, 7)).astype(np.float32)
    np.savez(tmp_path / "v.npz", item=vectors, word=np.zeros((2, 7), np.float32))
    items = np.arange(1, 400, dtype=np.int32)[:, None]
    own = {
        "rec_items": items,
        "rec_order": np.zeros_like(items),
        "query_words": np.zeros_like(items)[..., None],
        "clicked_items": items[..., None],
        "search_order": np.ones_like(items),
    }
    filtered = SearchFilter(str(tmp_path / "v.npz"), 1.0)(own)
    assert not filtered["clicked_items"].any()


def test_without_its_vectors_it_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"expected the vectors .* found no such file"):
        SearchFilter(str(tmp_path / "v.npz"), 0.5)


@pytest.mark.parametrize(
    "arrays",
    [
        {"item": VECTORS},
        {"item": VECTORS, "word": VECTORS[0]},
        {"item": VECTORS, "word": np.full((4, 2), "a")},
        {"item": np.full((4, 2), np.nan), "word": VECTORS},
    ],
)
def test_broken_vectors_are_one_line(tmp_path, arrays):
    path = tmp_path / "v.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=r"finite (item|word) vectors in .*, found none; bring it"):
        SearchFilter(str(path), 0.5)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="the vectors of a sweep over thresholds at"):
        SearchFilter(str(path), 0.5)
