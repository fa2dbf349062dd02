"""The trie gives exactly the tokens that some identifier continues with."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import trie as tries
from core.errors import UserError

# Prefix (3, 1) has two items, (3, 2) and (5, 1) one each.
CODES = np.array([[3, 1, 9], [5, 1, 7], [3, 2, 9], [3, 1, 4]])


def nodes_of(trie, depth, nodes):
    below = tries.children(trie, depth, jnp.array([nodes], jnp.int32))
    return [
        [(int(t), int(n)) for t, n, v in zip(*row) if v]
        for row in zip(below.tokens[0], below.nodes[0], below.valid[0])
    ]


def test_children_worked_by_hand():
    trie = tries.build(CODES)
    assert trie.fanout == (2, 2, 2) and trie.length == 3
    assert nodes_of(trie, 0, [0]) == [[(3, 0), (5, 1)]]
    # Depth 2, in order of prefix: (3, 1), (3, 2), (5, 1).
    assert nodes_of(trie, 1, [1, 0, -1]) == [[(1, 2)], [(1, 0), (2, 1)], []]
    assert nodes_of(trie, 2, [0, 1, 2]) == [[(4, 0), (9, 1)], [(9, 2)], [(7, 3)]]
    assert tries.leaf_items(trie, jnp.array([[0, 1, 2, 3, -1]])).tolist() == [[3, 0, 2, 1, -1]]


def test_padding_of_children_is_marked():
    below = tries.children(tries.build(CODES), 1, jnp.array([[1]]))
    assert below.valid.tolist() == [[[True, False]]]
    assert below.nodes.tolist() == [[[2, -1]]] and below.tokens.tolist() == [[[1, 0]]]


def test_find_knows_items_by_the_ids_given_and_nothing_else():
    trie = tries.build(CODES, items=np.array([10, 20, 30, 40]))
    asked = jnp.array([[[3, 1, 4], [5, 1, 7], [3, 2, 4], [0, 0, 0], [5, 2, 7]]])
    assert tries.find(trie, asked).tolist() == [[40, 20, -1, -1, -1]]


def test_every_prefix_of_a_random_catalogue_agrees_with_its_rows():
    codes = np.unique(np.random.default_rng(0).integers(0, 6, (200, 3)), axis=0)
    codes = np.random.default_rng(1).permutation(codes)
    trie = tries.build(codes)
    prefixes = {(): 0}
    for depth in range(3):
        longer = {}
        rows = nodes_of(trie, depth, list(prefixes.values()))
        for prefix, below in zip(prefixes, rows):
            expected = {int(c[depth]) for c in codes if tuple(c[:depth]) == prefix}
            assert [t for t, _ in below] == sorted(expected)
            longer |= {(*prefix, t): n for t, n in below}
        prefixes = longer
    leaves = jnp.array([list(prefixes.values())])
    items = np.asarray(tries.leaf_items(trie, leaves))[0]
    np.testing.assert_array_equal(codes[items], list(prefixes))


def test_a_trie_a_user_is_the_trie_of_their_candidates():
    codes = np.unique(np.random.default_rng(2).integers(0, 4, (60, 3)), axis=0)
    candidates = np.array([[1, 5, 9, 2], [7, 7, 3, 0]])
    valid = np.array([[True, True, True, True], [True, True, True, False]])
    trie = jax.jit(tries.of_candidates)(codes, candidates, valid)
    assert trie.per_user and trie.fanout == (4, 4, 4)
    own = [tries.build(codes[[1, 5, 9, 2]]), tries.build(codes[[3, 7]])]
    names = [np.array([1, 5, 9, 2]), np.array([3, 7])]
    everything = jnp.broadcast_to(jnp.asarray(codes), (2, *codes.shape))
    items = np.asarray(tries.find(trie, everything))
    for user in range(2):
        alone = np.asarray(tries.find(own[user], everything[:1]))[0]
        np.testing.assert_array_equal(
            items[user], np.where(alone >= 0, names[user][alone], -1), str(user)
        )
    # The padded candidate, item 0, is not there; the one listed twice is one leaf.
    assert sorted(np.asarray(trie.items[1]).tolist()) == [-1, -1, 3, 7]


def test_duplicates_are_refused_and_named():
    codes = np.array([[1, 2], [3, 4], [1, 2], [3, 4], [1, 2]])
    with pytest.raises(UserError, match=r"3 of 5 taken already .*items 10 and 30 are both \[1, 2"):
        tries.build(codes, items=np.array([10, 20, 30, 40, 50]))


@pytest.mark.parametrize(
    "codes", [np.zeros((0, 3), int), np.zeros(3, int), np.array([[0, -1]]), np.ones((2, 2))]
)
def test_a_table_that_is_no_identifiers_is_refused(codes):
    with pytest.raises(UserError, match="make the identifier table again"):
        tries.build(codes)


def test_bytes_an_item():
    # 256 * 256 * 2: nearly every item parts from the others at the third level or before.
    rng = np.random.default_rng(0)
    codes = np.unique(rng.integers(0, 256, (100_000, 4)), axis=0)
    trie = tries.build(codes)
    inner = [len(np.unique(codes[:, :depth], axis=0)) for depth in (1, 2, 3)]
    assert trie.nbytes == 4 * sum(inner) + 4 * len(codes) + 4 * len(codes) + sum(
        4 * (n + 1) for n in (1, *inner)
    )
    assert trie.nbytes < 32 * len(codes)


def test_looking_up_costs_the_same_in_any_catalogue():
    def operations(count):
        codes = np.unique(np.random.default_rng(0).integers(0, 64, (count, 3)), axis=0)
        trie = tries.build(codes)
        nodes = jnp.zeros((8, 30), jnp.int32)
        compiled = jax.jit(lambda t, n: tries.children(t, 2, n)).lower(trie, nodes).compile()
        return compiled.memory_analysis().temp_size_in_bytes, trie.fanout[2]

    small, large = operations(2_000), operations(100_000)
    # Only the fan-out grows, up to the size of a codebook.
    assert large[0] <= small[0] * max(1, large[1] / small[1]) + 4096


@pytest.mark.slow
def test_a_million_items():
    codes = np.unique(np.random.default_rng(0).integers(0, 256, (1_000_000, 4)), axis=0)
    begin = time.monotonic()
    trie = tries.build(codes)
    assert time.monotonic() - begin < 60
    assert trie.nbytes < 24 * len(codes)
    rows = np.random.default_rng(1).integers(0, len(codes), 1000)
    assert tries.find(trie, jnp.asarray(codes[rows])[None]).tolist() == [rows.tolist()]
