"""Scores items by a dot product with one vector a user, the query: the tuned form of LCR-SER.

Eq. 8 and 10 score an item by an MLP over sums that depend on it, so that a loss over many items
costs an MLP for each. Here a user has one query

    q = b + sum over both sides of (sum_j a_j e_j + W h^(K)),

with e_j the rows of the j-th latest event and h^(K) the side's state after K steps; an item's score
is q . e_v. At the start W is zero and a_j falls by a fixed factor from event to event, so that an
item is scored by its nearness to the latest events, as item-kNN does; reasoning then learns what
that lacks. With `b` an item has a bias, which at the start is the logarithm of how often it was
clicked (`lcrsr.spectral_start`).
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcrsr.attention import shared_mixtures
from lcrsr.history_encoder import SideHistory

# What b reads of an item's row at the start: its first coordinate, times this.
POPULARITY_WEIGHT = 10.0
# The a_j of the j-th latest event at the start, in the unit of rows of standard deviation 1.
_RECENT, _DECAY = 0.3, 0.6


class QueryWeights(NamedTuple):
    """Holds W of both sides [D, D] and b [D]."""

    rec: jax.Array
    search: jax.Array
    bias: jax.Array


class Query(nn.Module):
    """Holds `QueryWeights`."""

    width: int

    @nn.compact
    def __call__(self) -> QueryWeights:
        shape, zeros = (self.width, self.width), nn.initializers.zeros
        return QueryWeights(
            self.param("rec", zeros, shape),
            self.param("search", zeros, shape),
            self.param("bias", lambda key: jnp.zeros(self.width).at[0].set(POPULARITY_WEIGHT)),
        )


def recency(length: int, scale: float) -> jax.Array:
    """Returns the weights a_j [L] at the start, of the latest event first.

    Args:
      scale: standard deviation of the tables' rows.
    """
    return _RECENT / scale * _DECAY ** jnp.arange(length)


def recent(weights: jax.Array, rows: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns sum_j a_j e_j of each target [B, D].

    Args:
      weights: a_j [A], of the latest event first; A at least as long as a history.
      rows: of events [V, L, D], of users or of windows.
      mask: bool [B, L], the events of each target's history, which lie side by side.
    """
    ago = jnp.cumsum(mask[:, ::-1], 1)[:, ::-1] - 1
    mixing = jnp.where(mask, weights[jnp.clip(ago, 0, len(weights) - 1)], 0.0)
    return shared_mixtures(mixing[:, None], rows)[:, 0]


def query(
    weights: QueryWeights,
    rec: tuple[SideHistory, jax.Array],
    search: tuple[SideHistory, jax.Array],
) -> jax.Array:
    """Returns q [..., B, D] from both sides' histories and states h^(K) [..., B, D].

    An empty history adds nothing.
    """
    total = weights.bias
    for (history, state), kernel in ((rec, weights.rec), (search, weights.search)):
        assert history.recent is not None
        known = jnp.where(history.mask.any(-1, keepdims=True), state, 0.0)
        total = total + history.recent + known @ kernel
    return total


def scores(queries: jax.Array, items: jax.Array) -> jax.Array:
    """Returns q . e_v, float32 [..., B, N], for items [B, N, D], or [N, D] shared by all users."""
    if items.ndim == 2:
        return (queries @ items.T).astype(jnp.float32)
    return jnp.einsum("...bd,bnd->...bn", queries, items).astype(jnp.float32)
