"""Searches the identifiers of a trie by beams, compiled whole.

The levels of an identifier are few, so they are unrolled: a level has as many beams as there are
prefixes up to the beam's width, the first one a single beam, and after the last code nothing is
decoded. A candidate is a child of a beam's node, never any other token, so that what comes out is
always an item, and each item once: a leaf has one path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from core import trie as tries
from core.trie import Trie

# step(level, tokens [B, K], cache) -> (logits [B, K, W], cache)
Step = Callable[[int, jax.Array, Any], tuple[jax.Array, Any]]


class Beams(NamedTuple):
    """Holds the best identifiers, best first; K is the width, or all items where these are fewer.

    Attributes:
      items: int32 [B, K]; -1 in places that are left over (a trie of fewer items).
      scores: float32 [B, K], log-likelihoods in nats; -inf in places that are left over, NaN where
        logits are NaN or the trie has tokens beyond the vocabulary.
      tokens: int32 [B, K, L]; 0 in places that are left over.
    """

    items: jax.Array
    scores: jax.Array
    tokens: jax.Array


def _select(array: jax.Array, parents: jax.Array) -> jax.Array:
    """Rows of `array` [B, J, ...] at `parents` [B, K] as [B, K, ...]."""
    return jax.vmap(lambda rows, places: rows[places])(array, parents)


def _log_probabilities(
    logits: jax.Array, below: tries.Children, renormalise: bool, padding: int | None
) -> jax.Array:
    """Returns log p float32 [B, K, F] of each child; meaningless where there is no child."""
    logits = logits.astype(jnp.float32)
    # A token beyond the vocabulary scores NaN instead of another token's probability.
    chosen = jnp.take_along_axis(logits, below.tokens, -1, mode="fill", fill_value=jnp.nan)
    if renormalise:
        total = jax.nn.logsumexp(chosen, -1, where=below.valid, keepdims=True)
    else:
        total = jax.nn.logsumexp(logits, -1, keepdims=True)
    if padding is None:
        return chosen - total
    return jnp.where(below.tokens == padding, 0.0, chosen - total)


def search(
    step: Step,
    cache: Any,
    start: jax.Array,
    trie: Trie,
    width: int,
    *,
    renormalise: bool = False,
    padding: int | None = None,
) -> Beams:
    """Returns the items of highest log-likelihood that a beam of `width` finds; runs inside jit.

    Args:
      step: reads a token of each beam and gives the logits [B, K, W] of the next one, over the
        whole vocabulary of W tokens, with the cache. `level` is a Python integer: 0 for `start`,
        then the number of codes read, so that a cache may grow by a place a level. It must treat
        beams of a user independently.
      cache: arrays [B, 1, ...] of `step`; from the second call on [B, K, ...], in the order of the
        beams. What all beams of a user share (an encoded input, a prompt's keys and values)
        belongs into `step` itself, where no beam copies it.
      start: int32 [B], the last token before an identifier.
      trie: for all users, or one a user.
      width: beams a user.
      renormalise: False scores a code by its probability among all tokens (raw), so that a score
        is the log-likelihood of the identifier; True by its probability among the tokens that the
        trie allows.
      padding: the token that fills identifiers of fewer tokens after their end, which costs
        nothing; None where every token is scored.

    Returns:
      min(width, leaves) beams. With `width` at least the number of items these are all items.

    Raises:
      ValueError: width below 1.
    """
    chex.assert_rank(start, 1)
    if width < 1:
        raise ValueError(f"expected a beam of at least 1, found {width}")
    batch = start.shape[0]
    lowest = jnp.finfo(jnp.float32).min
    nodes = jnp.zeros((batch, 1), jnp.int32)
    scores = jnp.zeros((batch, 1), jnp.float32)
    read = start[:, None].astype(jnp.int32)
    written = jnp.zeros((batch, 1, 0), jnp.int32)
    for level in range(trie.length):
        logits, cache = step(level, read, cache)
        below = tries.children(trie, level, nodes)
        # The floor keeps a child of probability zero ahead of what is no child at all.
        likelihood = jnp.maximum(
            scores[..., None] + _log_probabilities(logits, below, renormalise, padding), lowest
        )
        candidates = jnp.where(below.valid, likelihood, -jnp.inf)
        fanout = candidates.shape[-1]
        count = min(width, trie.tokens[level].shape[-1], candidates.shape[1] * fanout)
        scores, places = jax.lax.top_k(candidates.reshape(batch, -1), count)
        parents = places // fanout
        nodes = jnp.take_along_axis(below.nodes.reshape(batch, -1), places, 1)
        read = jnp.take_along_axis(below.tokens.reshape(batch, -1), places, 1)
        written = jnp.concatenate([_select(written, parents), read[..., None]], -1)
        if level + 1 < trie.length:
            cache = jax.tree.map(lambda array, p=parents: _select(array, p), cache)
    items = tries.leaf_items(trie, nodes)
    return Beams(items, scores, jnp.where((items >= 0)[..., None], written, 0))
