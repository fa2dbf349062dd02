"""Holds what baselines share that learn from two changed views of one history."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def piece_sizes(share: float, counts: jax.Array, most: int) -> jax.Array:
    """Returns floor(share * count) of counts of at most `most`, in the arithmetic of float64."""
    table = np.floor(share * np.arange(most + 1) + 1e-9).astype(np.int32)
    return jnp.asarray(table)[counts]


def hidden_places(key: jax.Array, count: jax.Array, length: int, share: float) -> jax.Array:
    """Draws floor(share * count) of the first `count` places of one history: bool [L]."""
    noise = jnp.where(jnp.arange(length) < count, jax.random.uniform(key, (length,)), 2.0)
    rank = jnp.argsort(jnp.argsort(noise))
    return rank < piece_sizes(share, count, length)


def nt_xent(
    first: jax.Array, second: jax.Array, users: jax.Array, counts: jax.Array, temperature: float
) -> jax.Array:
    """Returns the mean over 2B views of -log softmax of its partner among the other views.

    Args:
      first, second: the two views' vectors [B, D].
      users: [B]; views of one user are no negatives of each other.
      counts: bool [B], pairs that there are.
    """
    views = jnp.concatenate([first, second])
    logits = views @ views.T / temperature
    same = jnp.eye(len(users), dtype=bool)
    others = (users[:, None] != users) & counts
    partner_or_other = jnp.block([[others, same | others], [same | others, others]])
    logits = jnp.where(partner_or_other, logits, -jnp.inf)
    own = jnp.tile((first * second).sum(-1) / temperature, 2)
    losses = jax.nn.logsumexp(logits, -1) - own
    weights = jnp.tile(counts, 2)
    return (losses * weights).sum() / jnp.maximum(weights.sum(), 1)
