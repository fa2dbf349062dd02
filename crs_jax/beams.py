"""Beams that are held to no trie, as training rollouts have them (Eq. 6 needs invalid answers)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from core.beam_search import Step


class FreeBeams(NamedTuple):
    """Holds the best token sequences, best first.

    Attributes:
      tokens: int32 [B, K, L].
      scores: float32 [B, K], log-likelihoods in nats.
    """

    tokens: jax.Array
    scores: jax.Array


def _select(array: jax.Array, parents: jax.Array) -> jax.Array:
    return jax.vmap(lambda rows, places: rows[places])(array, parents)


def search(step: Step, cache: Any, start: jax.Array, length: int, width: int) -> FreeBeams:
    """Returns the likeliest sequences of `length` tokens that a beam of `width` finds; runs inside
    jit.

    Args:
      step, cache, start: as in `core.beam_search.search`.
    """
    batch = start.shape[0]
    scores = jnp.zeros((batch, 1), jnp.float32)
    read = start[:, None].astype(jnp.int32)
    written = jnp.zeros((batch, 1, 0), jnp.int32)
    for level in range(length):
        logits, cache = step(level, read, cache)
        words = logits.shape[-1]
        likelihood = scores[..., None] + jax.nn.log_softmax(logits.astype(jnp.float32), -1)
        count = min(width, likelihood.shape[1] * words)
        scores, places = jax.lax.top_k(likelihood.reshape(batch, -1), count)
        parents, read = places // words, places % words
        written = jnp.concatenate([_select(written, parents), read[..., None]], -1)
        if level + 1 < length:
            cache = jax.tree.map(lambda array, p=parents: _select(array, p), cache)
    return FreeBeams(written, scores)
