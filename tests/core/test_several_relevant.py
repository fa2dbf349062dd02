"""Rankings with several relevant items: against scikit-learn, and against every order of ties."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from core import metrics
from core.several_relevant import measure

RNG = np.random.default_rng(0)


def counts(scores, relevant):
    """Counts the items above and the items tied with each relevant item, as evaluations keep."""
    others = np.delete(scores, relevant)
    above = [(others > scores[item]).sum() for item in relevant]
    tied = [(others == scores[item]).sum() for item in relevant]
    return np.array(above), np.array(tied)


def in_every_order(scores, relevant, k):
    """Metrics averaged over all orders of tied items."""
    values = []
    for order in itertools.permutations(range(len(scores))):
        if any(scores[a] < scores[b] for a, b in itertools.pairwise(order)):
            continue
        hits = np.isin(order, relevant)
        precisions = np.cumsum(hits) / np.arange(1, len(scores) + 1)
        first = np.argmax(hits) + 1
        values.append(
            [
                hits[:k].sum() / len(relevant),
                (precisions * hits)[:k].sum() / min(len(relevant), k),
                1 / first if first <= k else 0.0,
            ]
        )
    return np.mean(values, 0)


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_ties_count_as_the_mean_of_all_orders(k):
    cases = [(RNG.integers(0, 3, 7), RNG.permutation(7)[: 1 + case % 3]) for case in range(6)]
    cases.append((np.zeros(6), np.array([1, 4])))
    kept = [counts(*case) for case in cases]
    above, tied = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    ranking = np.repeat(np.arange(len(cases)), [len(relevant) for _, relevant in cases])
    found = measure(above, tied, ranking, k)
    assert list(found) == [f"recall@{k}", f"map@{k}", f"mrr@{k}"]
    expected = np.array([in_every_order(*case, k) for case in cases])
    np.testing.assert_allclose(np.stack(list(found.values()), 1), expected, atol=1e-9)


def test_without_ties_map_is_scikit_learns():
    scores, relevant = RNG.permutation(40), RNG.permutation(40)[:6]
    truth = np.isin(np.arange(40), relevant)
    found = measure(*counts(scores, relevant), np.zeros(6, int), 40)
    assert found["map@40"][0] == pytest.approx(average_precision_score(truth, scores))
    assert found["recall@40"][0] == pytest.approx(1.0)


def test_with_one_relevant_item_they_are_hit_rate_and_reciprocal_rank():
    above, tied = RNG.integers(0, 12, (2, 50)).astype(np.int32)
    found = measure(above, tied, np.arange(50), 10)
    hits, reciprocal = (metrics.metric(name)(above, tied) for name in ("hr@10", "mrr@10"))
    np.testing.assert_allclose(found["recall@10"], hits, atol=1e-6)
    np.testing.assert_allclose(found["mrr@10"], reciprocal, atol=1e-6)
    np.testing.assert_allclose(found["map@10"], reciprocal, atol=1e-6)


def test_a_constant_scorer_over_a_large_catalogue():
    # Two relevant of a million tied items: recall is chance, and nothing overflows.
    found = measure(np.zeros(2, int), np.full(2, 999_998), np.zeros(2, int), 10)
    assert found["recall@10"][0] == pytest.approx(1e-5)
    harmonic = (1 / np.arange(1, 11)).sum()
    assert found["mrr@10"][0] == pytest.approx(2e-6 * harmonic, rel=1e-4)
