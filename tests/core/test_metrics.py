"""Metrics against scikit-learn, hand-worked ties, and what must raise."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from core import metrics
from core.errors import UserError

NAMES = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10")


def value(name, scores):
    return float(metrics.metric(name)(*metrics.target_ranks(jnp.asarray(scores, jnp.float32))))


def test_a_constant_scorer_gets_exactly_chance():
    constant = np.zeros(100)
    assert value("hr@10", constant) == pytest.approx(0.10, abs=1e-7)
    assert value("hr@1", constant) == pytest.approx(0.01, abs=1e-7)


@pytest.mark.parametrize(
    ("name", "scores", "expected"),
    [
        # Target above all.
        ("ndcg@5", [3, 1, 2], 1.0),
        # One above: rank 2, 1/log2(3).
        ("ndcg@5", [2, 3, 1], 0.63092975),
        # Tied for ranks 1 and 2: half each.
        ("hr@1", [3, 3, 1], 0.5),
        ("ndcg@5", [3, 3, 1], (1 + 0.63092975) / 2),
        # Ranks 2, 3, 4 alike: hr@3 is 2/3; ndcg@3 is (1/log2(3) + 1/log2(4)) / 3.
        ("hr@3", [1, 9, 1, 1], 2 / 3),
        ("ndcg@3", [1, 9, 1, 1], (0.63092975 + 0.5) / 3),
        # Beyond the cut-off.
        ("hr@1", [1, 2, 3], 0.0),
        ("ndcg@1", [1, 2, 3], 0.0),
    ],
)
def test_hand_worked(name, scores, expected):
    assert value(name, scores) == pytest.approx(expected, abs=1e-6)


def test_ndcg_is_scikit_learns_on_tied_scores():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 8, (50, 30)).astype(np.float32)
    truth = np.zeros((50, 30))
    truth[:, 0] = 1
    above, tied = metrics.target_ranks(jnp.asarray(scores))
    for k in (1, 5, 10):
        ours = np.asarray(metrics.metric(f"ndcg@{k}")(above, tied))
        # ignore_ties=False averages the gains of tied ranks, as we do.
        theirs = [ndcg_score(truth[i : i + 1], scores[i : i + 1], k=k) for i in range(50)]
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_invalid_candidates_do_not_count():
    scores = jnp.array([[1.0, 5.0, 1.0, 0.0]])
    valid = jnp.array([[False, False, True, True]])  # the target counts whatever is said of it
    above, tied = metrics.target_ranks(scores, valid=valid)
    assert (int(above[0]), int(tied[0])) == (0, 1)


def test_sums_merge_and_padding_counts_nothing():
    whole, first, second = (metrics.Sums(NAMES) for _ in range(3))
    above, tied = np.array([0, 1, 7, 99]), np.array([0, 0, 2, 0])
    mask, fine = np.array([1, 1, 1, 0]), np.zeros(4, bool)
    whole.add(above, tied, mask, fine)
    first.add(above[:2], tied[:2], mask[:2], fine[:2])
    second.add(above[2:], tied[2:], mask[2:], fine[2:])
    first.merge(second)
    assert first.count == whole.count == 3
    assert first.means() == whole.means()
    assert whole.means()["hr@1"] == pytest.approx(1 / 3)
    # Ranks 8, 9, 10 of the third: all within 10.
    assert whole.means()["hr@10"] == pytest.approx(1.0)
    assert whole.per_example()["hr@5"].tolist() == [1, 1, 0]


def test_nan_scores_raise_unless_they_are_padding():
    sums = metrics.Sums(NAMES)
    broken = np.array([False, True])
    sums.add(np.zeros(2, int), np.zeros(2, int), np.array([1, 0]), broken)
    with pytest.raises(FloatingPointError, match="1 of 2 examples"):
        sums.add(np.zeros(2, int), np.zeros(2, int), np.array([1, 1]), broken)


@pytest.mark.parametrize("name", ["err@5", "ndcg", "hr@0", "ndcg@5/neg99"])
def test_unknown_metrics_are_refused(name):
    with pytest.raises(UserError, match="families: hr, ndcg"):
        metrics.metric(name)


def test_nothing_has_no_mean():
    with pytest.raises(ValueError, match="found none"):
        metrics.Sums(NAMES).means()
