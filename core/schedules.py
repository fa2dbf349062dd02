"""Learning rates over a stage's updates."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rate_at(step: jax.Array, max_steps: int, warmup: float) -> jax.Array:
    """Returns the learning rate's factor: a linear rise over `warmup` of the updates, then a
    cosine.
    """
    rising = max(1.0, warmup * max_steps)
    progress = jnp.clip((step + 1 - rising) / max(1.0, max_steps - rising), 0.0, 1.0)
    cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(step + 1 < rising, (step + 1) / rising, cosine)
