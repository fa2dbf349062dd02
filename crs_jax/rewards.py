"""Computes the rewards of CRS, Eq. 3-6, as pure functions.

Axis letters: G trajectories of one user, B users, K answers of one trajectory, L levels of an
identifier, T tokens; a leading ... is any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from core import trie as tries
from core.trie import Trie


class Reasoning(NamedTuple):
    """Describes what lies between the tags.

    Attributes:
      complete: bool [...], <think> is there and </think> after it.
      length: int32 [...], tokens strictly between the first pair; 0 where that is not complete.
    """

    complete: jax.Array
    length: jax.Array


def reasoning(tokens: jax.Array, think: int, end_think: int) -> Reasoning:
    """Describes the reasoning of trajectories int32 [..., T]."""
    places = jnp.arange(tokens.shape[-1])
    opens = tokens == think
    start = jnp.argmax(opens, -1)
    ends = (tokens == end_think) & (places > start[..., None])
    complete = opens.any(-1) & ends.any(-1)
    length = jnp.argmax(ends, -1) - start - 1
    return Reasoning(complete, jnp.where(complete, length, 0).astype(jnp.int32))


def structure(complete: jax.Array) -> jax.Array:
    """Returns r_structure of Eq. 3: 0 where both tags exist, -1 otherwise."""
    return jnp.where(complete, 0.0, -1.0)


def length(count: jax.Array, limit: int) -> jax.Array:
    """Returns r_length of Eq. 4: min(1, count / L), of tokens between the tags."""
    return jnp.minimum(1.0, count / limit)


def accuracy(
    predicted: jax.Array, target: jax.Array, weights: Sequence[float], *, prefix: bool = False
) -> jax.Array:
    """Returns r_sid_acc of Eq. 5, float32 [...]: the sum of w_i over the levels i that match.

    Args:
      predicted, target: int32 [..., L].
      weights: of the first levels; further ones, as the de-duplication level, are not scored.
      prefix: a level counts only where all levels before it match too; printed is False.
    """
    scored = len(weights)
    match = (predicted == target)[..., :scored].astype(jnp.float32)
    if prefix:
        match = jnp.cumprod(match, -1)
    return (match * jnp.asarray(weights, jnp.float32)).sum(-1)


def validity(trie: Trie, predicted: jax.Array) -> jax.Array:
    """Returns r_sid_val of Eq. 6 of identifiers int32 [B, K, L]: 1 where an item has it, 0
    otherwise.
    """
    return (tries.find(trie, predicted) >= 0).astype(jnp.float32)


def total(
    reasoning: Reasoning,
    limit: int,
    accuracies: jax.Array,
    validities: jax.Array,
) -> jax.Array:
    """Returns the sum of all rewards of each answer, float32 [..., K].

    Without </think> there is no answer: the sum is that of the structure alone, -1.

    Args:
      reasoning: of trajectories [...].
      limit: L of Eq. 4.
      accuracies, validities: float32 [..., K].
    """
    chex.assert_equal_shape([accuracies, validities])
    complete = reasoning.complete[..., None]
    shared = (structure(reasoning.complete) + length(reasoning.length, limit))[..., None]
    return shared + jnp.where(complete, accuracies + validities, 0.0)
