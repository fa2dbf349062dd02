"""P5-CID's clusters and identifiers on graphs whose clusters are plain."""

import numpy as np
import pytest
import scipy.sparse

from core.errors import UserError
from core.settings import build
from gensar_jax.baselines.p5_cid import ClusterSettings, cluster_codes, clusters_of, shared_users


def graph(pairs, items):
    weights = np.zeros((items, items))
    for a, b in pairs:
        weights[a, b] = weights[b, a] = 1
    return scipy.sparse.csr_array(weights)


def cliques(size, count):
    """Cliques, each joined to the next by one edge."""
    pairs = [
        (size * c + i, size * c + j) for c in range(count) for i in range(size) for j in range(i)
    ]
    return pairs + [(size * c + size - 1, size * (c + 1)) for c in range(count - 1)]


def test_two_cliques_joined_by_an_edge_share_their_first_symbol():
    codes, symbols = cluster_codes(
        graph(cliques(4, 2), 8), ClusterSettings(clusters=2, most_items=4)
    )
    first = codes[:, 0]
    assert len(set(first[:4])) == len(set(first[4:])) == 1 and first[0] != first[4]
    # Two nodes, then four counters that both leaves share.
    assert symbols == 6 and codes[:4, 1].tolist() == codes[4:, 1].tolist() == [2, 3, 4, 5]


def test_both_orders_of_a_pair_count():
    # Users 1 to 5 clicked item 1 before 2, users 6 and 7 the other way round, one of them twice.
    clicks = np.zeros((9, 4), int)
    clicks[1:8, 1:3] = 1
    clicks[7, 1] = 3
    clicks[8, 3] = 1
    weights = shared_users(scipy.sparse.csr_array(clicks)).toarray()
    assert weights.tolist() == [[0, 7, 0], [7, 0, 0], [0, 0, 0]]


def test_a_cluster_of_too_many_items_is_clustered_again():
    # Twelve cliques of five in two groups: groups, then fives, then counters.
    one = cliques(5, 6)
    pairs = one + [(a + 30, b + 30) for a, b in one]
    # Inside a group all cliques touch, between the groups one edge does.
    pairs += [
        (5 * a + 30 * g, 5 * b + 30 * g + 1) for g in (0, 1) for a in range(6) for b in range(a)
    ]
    pairs.append((0, 59))
    settings = ClusterSettings(clusters=2, most_items=8)
    codes, symbols = cluster_codes(graph(pairs, 60), settings)
    assert len(np.unique(codes, axis=0)) == 60
    assert len(set(codes[:30, 0])) == len(set(codes[30:, 0])) == 1
    # No node is told by the symbol of another, and -1 stands only at the end.
    lengths = (codes >= 0).sum(1)
    assert lengths.min() >= 4 and (codes[np.arange(60), lengths - 1] < symbols).all()
    for row, length in zip(codes, lengths):
        assert (row[length:] == -1).all() and (row[:length] >= 0).all()
    again, _ = cluster_codes(graph(pairs, 60), settings)
    assert again.tolist() == codes.tolist()


def test_items_without_a_shared_user_hang_on_a_node_of_their_own():
    weights = graph(cliques(4, 2), 20)
    codes, _ = cluster_codes(weights, ClusterSettings(clusters=2, most_items=4))
    assert len(np.unique(codes, axis=0)) == 20
    alone = set(codes[8:, 0])
    assert len(alone) == 1 and not alone & set(codes[:8, 0])
    # A graph that nothing divides is cut in the order of its items.
    whole, _ = cluster_codes(graph([], 10), ClusterSettings(clusters=2, most_items=4))
    assert len(np.unique(whole, axis=0)) == 10


def test_the_eigensolver_for_large_graphs_finds_the_same_clusters():
    weights = graph(cliques(6, 4), 24)
    labels = clusters_of(weights, 4, seed=0)
    assert [len(set(labels[6 * c : 6 * c + 6])) for c in range(4)] == [1] * 4
    assert len(set(labels)) == 4


def test_leaves_of_fewer_items_than_clusters_are_refused():
    with pytest.raises(UserError, match="most_items of at least the 20 clusters, found 10"):
        build(ClusterSettings, {"clusters": 20, "most_items": 10}, section="model")
