"""Learning rates over a stage's updates."""

from __future__ import annotations

from typing import Any

import jax
import optax

# What is left of the rate at the end of `falling`.
_LAST = 0.1


def falling(step: jax.Array, max_steps: int) -> Any:
    """Returns the factor of the learning rate: a cosine from 1 to a tenth, which then stays.

    Args:
      step: updates made so far.
      max_steps: updates until the rate is a tenth.
    """
    return optax.cosine_decay_schedule(1.0, max_steps, _LAST)(step)


def rate_at(step: jax.Array, max_steps: int, warmup: float) -> Any:
    """Returns the factor of the learning rate: a linear rise, then a cosine to 0.

    Args:
      step: updates made so far; the first is made at the rate of step 0, which is above 0.
      max_steps: of the stage; the factor of its last update is 0.
      warmup: share of `max_steps`; the rise takes at least one update.
    """
    # A share need not be a whole number of updates: optax takes fractions of one.
    rising = max(1.0, warmup * max_steps)
    falling = max(1.0, max_steps - rising)
    return optax.warmup_cosine_decay_schedule(0.0, 1.0, rising, rising + falling)(step + 1)
