"""The measures of meaning, and residual k-means that they compare with."""

import numpy as np
import pytest

from gensar_jax import meaning


def test_shared_prefix_by_hand():
    first = np.array([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]])
    second = np.array([[1, 2, 3], [1, 2, 4], [1, 9, 3], [9, 2, 3]])
    assert meaning.shared_prefix(first, second).tolist() == [3, 2, 1, 0]


def clustered(seed=0):
    """12 clusters of 12 items: neighbours are those of the cluster."""
    rng = np.random.default_rng(seed)
    centres = np.eye(12)
    rows = np.repeat(centres, 12, 0) + 0.01 * rng.normal(size=(144, 12))
    return rows.astype(np.float32), np.repeat(np.arange(12), 12)


def test_codes_by_cluster_mean_something_and_random_ones_do_not():
    rows, cluster = clustered()
    good = np.stack([cluster, np.tile(np.arange(12), 12)], 1)
    random = np.random.default_rng(1).permutation(good)
    assert meaning.neighbours_kept(good, rows) == 1.0
    assert meaning.neighbours_kept(random, rows) < 0.2
    assert meaning.prefix_correlation(good, rows) > 0.4
    assert abs(meaning.prefix_correlation(random, rows)) < 0.05


def test_items_without_a_direction_are_left_out():
    rows, cluster = clustered()
    codes = np.stack([cluster, np.tile(np.arange(12), 12)], 1)
    rows, codes = (
        np.concatenate([rows, np.zeros((9, 12))]),
        np.concatenate([codes, 99 + 0 * codes[:9]]),
    )
    assert meaning.neighbours_kept(codes, rows) == 1.0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("items", [0, 1, 2, 9])
def test_vectors_that_tell_nothing_apart_give_numbers(items):
    vectors = np.zeros((9, 3))
    vectors[:items, 0] = 1.0
    codes = np.arange(18).reshape(9, 2)
    codes[1] = codes[0]
    values = meaning.measure({"semantic": codes}, {"semantic": vectors})
    assert values["prefix_correlation/semantic"] == 0.0
    assert 0.0 <= values["neighbours_kept/semantic"] <= 1.0


def test_residual_k_means_finds_the_clusters_and_splits_them():
    rows, cluster = clustered()
    codes = meaning.residual_kmeans_codes(
        {"semantic": rows, "collaborative": rows[:, :4]},
        shared_levels=1,
        specific_levels=1,
        num_codes=12,
    )
    first = codes["semantic"][:, 0]
    assert first.tolist() == codes["collaborative"][:, 0].tolist()
    # scikit-learn started once finds at least 10 of the 12 clusters whole.
    purity = sum(np.bincount(cluster[first == code]).max() for code in set(first)) / 144
    assert purity > 0.8
    assert set(meaning.measure(codes, {"semantic": rows, "collaborative": rows[:, :4]})) == {
        f"{name}/{part}"
        for name in ("prefix_correlation", "neighbours_kept")
        for part in ("semantic", "collaborative", "shared")
    }
