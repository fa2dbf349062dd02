"""Identifiers as a trie in flat arrays on the device: which tokens may follow which prefix.

The nodes of a depth are numbered in the order of their prefixes, so the children of a node are
consecutive nodes of the next depth: a node costs its token and its first child, 8 bytes, and a leaf
its token and its item, 8 bytes. A prefix is shared by the items below it: L tokens an item cost at
most 8 L bytes an item, 32 at L = 4, and 16 where nearly all items part at the third of four levels
(1,000,000 random identifiers of 256 codes a level). Looking up costs the same in a catalogue of any
size.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError


@flax.struct.dataclass
class Trie:
    """Identifiers of L tokens; N_l nodes at depth l, N_0 = 1 (the root), N_L leaves.

    One trie serves all users of a batch, or each user has one of their own: then every array has a
    leading axis B, and places beyond a trie's own nodes are padding.

    Attributes:
      tokens: at place l, int32 [N_(l+1)]: the last token of each node of depth l + 1.
      first: at place l, int32 [N_l + 1]: the first child of each node of depth l among nodes of
        depth l + 1; the children of node n end where the children of n + 1 start.
      items: int32 [N_L], the item of each leaf.
      fanout: at place l, the most children that a node of depth l has.
    """

    tokens: tuple[jax.Array, ...]
    first: tuple[jax.Array, ...]
    items: jax.Array
    fanout: tuple[int, ...] = flax.struct.field(pytree_node=False)

    @property
    def length(self) -> int:
        """Returns L, the tokens of an identifier."""
        return len(self.tokens)

    @property
    def per_user(self) -> bool:
        """Tells whether each user has a trie of their own."""
        return self.items.ndim == 2

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(array.nbytes for array in (*self.tokens, *self.first, self.items))


class Children(NamedTuple):
    """Holds the children of nodes [B, K], in order of token, padded to F = fanout.

    Attributes:
      nodes: int32 [B, K, F], numbers among the nodes of the next depth; -1 is padding.
      tokens: int32 [B, K, F]; 0 at padding.
      valid: bool [B, K, F].
    """

    nodes: jax.Array
    tokens: jax.Array
    valid: jax.Array


def _layers(rows: jax.Array, items: jax.Array, valid: jax.Array) -> tuple[Trie, jax.Array]:
    """Lays out a trie of V identifiers [V, L] in arrays of V nodes a depth, with node counts
    [L].
    """
    count, length = rows.shape
    # The last key is the primary one: rows that do not count go to the end.
    order = jnp.lexsort((*(rows[:, i] for i in reversed(range(length))), ~valid))
    rows, items, valid = rows[order], items[order], valid[order]
    differs = jnp.cumsum(rows[1:] != rows[:-1], 1) > 0
    begins = jnp.concatenate([jnp.ones((1, length), bool), differs]) & valid[:, None]
    nodes = jnp.cumsum(begins, 0, dtype=jnp.int32) - 1
    counts = begins.sum(0, dtype=jnp.int32)
    # Rows that begin no node write to a place that is dropped.
    places = jnp.where(begins, nodes, count + 1)
    empty = jnp.zeros(count, jnp.int32)
    tokens = [empty.at[places[:, i]].set(rows[:, i], mode="drop") for i in range(length)]
    first = [jnp.stack([jnp.int32(0), counts[0]])]
    for i in range(1, length):
        ends = jnp.full(count + 1, counts[i])
        first.append(ends.at[places[:, i - 1]].set(nodes[:, i], mode="drop"))
    leaves = jnp.full(count, -1, jnp.int32).at[places[:, -1]].set(items, mode="drop")
    fanout = (count,) * length
    return Trie(tuple(tokens), tuple(first), leaves, fanout), counts


def build(identifiers: np.ndarray, items: np.ndarray | None = None) -> Trie:
    """Builds the trie of a catalogue.

    Args:
      identifiers: integers [V, L], the tokens of each item, at least 0.
      items: integers [V], the items' ids; row numbers if not given.

    Raises:
      UserError: no identifier, a negative token, or two items with one identifier.
    """
    identifiers = np.asarray(identifiers)
    if identifiers.ndim != 2 or not identifiers.size:
        raise UserError(
            f"expected identifiers [V, L] of at least one item, found shape {identifiers.shape}; "
            "make the identifier table again"
        )
    if not np.issubdtype(identifiers.dtype, np.integer) or identifiers.min() < 0:
        raise UserError(
            f"expected tokens of integers >= 0, found {identifiers.dtype} with minimum "
            f"{identifiers.min()}; make the identifier table again"
        )
    count, length = identifiers.shape
    ids = np.arange(count) if items is None else np.asarray(items)
    chex.assert_shape(ids, (count,))
    padded, counts = jax.jit(_layers)(
        jnp.asarray(identifiers, jnp.int32), jnp.asarray(ids, jnp.int32), jnp.ones(count, bool)
    )
    counts = np.asarray(counts)
    if counts[-1] != count:
        _refuse_duplicates(identifiers, ids)
    tokens = tuple(padded.tokens[i][: counts[i]] for i in range(length))
    parents = [1, *counts[:-1]]
    first = tuple(padded.first[i][: parents[i] + 1] for i in range(length))
    fanout = tuple(int(np.diff(np.asarray(starts)).max()) for starts in first)
    return Trie(tokens, first, padded.items, fanout)


def _refuse_duplicates(identifiers: np.ndarray, items: np.ndarray) -> None:
    order = np.lexsort(identifiers.T[::-1])
    equal = np.all(identifiers[order[1:]] == identifiers[order[:-1]], axis=1)
    place = int(np.argmax(equal))
    one, other = sorted(order[place : place + 2])
    raise UserError(
        f"expected one identifier an item, found {int(equal.sum())} of {len(items)} taken already "
        f"(items {items[one]} and {items[other]} are both {identifiers[one].tolist()}); resolve "
        "the collisions before building the trie"
    )


def of_candidates(identifiers: jax.Array, candidates: jax.Array, valid: jax.Array) -> Trie:
    """Builds a trie of each user's candidates; runs inside jit.

    A candidate listed twice is in the trie once.

    Args:
      identifiers: int32 [V, L], the tokens of each item; unique among candidates.
      candidates: int32 [B, N], items.
      valid: bool [B, N]; False is padding and not in the trie.
    """
    chex.assert_equal_shape([candidates, valid])
    rows = jnp.asarray(identifiers, jnp.int32)[candidates]
    trie, _ = jax.vmap(_layers)(rows, candidates.astype(jnp.int32), valid)
    return trie


def _read(array: jax.Array, places: jax.Array, per_user: bool) -> jax.Array:
    """Reads `array` [N], or [B, N] where `per_user`, at `places` [B, ...]."""
    if not per_user:
        return jnp.take(array, places, mode="clip")
    flat = places.reshape(places.shape[0], -1)
    return jnp.take_along_axis(array, flat, 1, mode="clip").reshape(places.shape)


def children(trie: Trie, depth: int, nodes: jax.Array) -> Children:
    """Returns what may follow the prefixes that `nodes` stand for.

    Args:
      trie: of L tokens.
      depth: of the nodes, in [0, L).
      nodes: int32 [B, K]; the root is 0, and -1 is no node and has no children.
    """
    start = _read(trie.first[depth], nodes, trie.per_user)
    stop = _read(trie.first[depth], nodes + 1, trie.per_user)
    below = start[..., None] + jnp.arange(trie.fanout[depth], dtype=jnp.int32)
    valid = (nodes >= 0)[..., None] & (below < stop[..., None])
    tokens = _read(trie.tokens[depth], below, trie.per_user)
    return Children(jnp.where(valid, below, -1), jnp.where(valid, tokens, 0), valid)


def leaf_items(trie: Trie, leaves: jax.Array) -> jax.Array:
    """Returns the items int32 [B, K] of leaves [B, K]; -1 where the leaf is -1."""
    return jnp.where(leaves >= 0, _read(trie.items, leaves, trie.per_user), -1)


def find(trie: Trie, tokens: jax.Array) -> jax.Array:
    """Returns the items int32 [B, K] of whole identifiers [B, K, L]; -1 where no item has one."""
    chex.assert_axis_dimension(tokens, 2, trie.length)
    nodes = jnp.zeros(tokens.shape[:2], jnp.int32)
    for depth in range(trie.length):
        below = children(trie, depth, nodes)
        match = below.valid & (below.tokens == tokens[..., depth, None])
        nodes = jnp.where(match, below.nodes, -1).max(-1)
    return leaf_items(trie, nodes)
