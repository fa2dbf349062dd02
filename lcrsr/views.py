"""Tells which events of a window each of its rows and each of its targets sees.

A window's rows hold the events of several targets, and often of several users, side by side
(`input_pipelines.windows`). Axes: V windows, L rows, B targets, of which B / V in order belong to
each window.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lcrsr.attention import last_valid


class Views(NamedTuple):
    """Holds one side's view of each row and target, all int32.

    Attributes:
      sees: [V, L], the first row that a row sees; itself is the last.
      places: [V, L], the position that a row is encoded with.
      first, end: [B], a target's history is rows first to end - 1; where it is empty, `first` is a
        row of padding or of an event that is none.
    """

    sees: jax.Array
    places: jax.Array
    first: jax.Array
    end: jax.Array

    def band(self) -> jax.Array:
        """Returns which rows each row sees, padding or not: bool [V, L, L] (row, seen row)."""
        columns = jnp.arange(self.sees.shape[1])
        return (columns <= columns[:, None]) & (columns >= self.sees[..., None])

    def of_targets(self, valid: jax.Array) -> jax.Array:
        """Returns which rows are each target's history: bool [B, L], from valid rows [V, L]."""
        columns = jnp.arange(valid.shape[1])
        inside = (columns >= self.first[:, None]) & (columns < self.end[:, None])
        return inside & each_target(valid, len(self.first))

    def never_empty(self, valid: jax.Array) -> jax.Array:
        """Returns `of_targets`, but the first row, which is padding, for an empty history."""
        seen = self.of_targets(valid)
        first = jnp.arange(seen.shape[1]) == self.first[:, None]
        return seen | (first & ~seen.any(-1, keepdims=True))


def views_of(batch: dict[str, Any], side: str) -> Views | None:
    """Returns the views of a batch of windows; None where each target has a history of its own.

    Args:
      side: 'rec' or 'search'.
    """
    if f"{side}_sees" not in batch:
        return None
    return Views(*(batch[f"{side}_{name}"] for name in Views._fields))


def each_target(of_windows: jax.Array, targets: int) -> jax.Array:
    """Repeats values of windows [V, ...] for their targets: [B, ...]."""
    return jnp.repeat(of_windows, targets // len(of_windows), axis=0)


def last_state(states: jax.Array, valid: jax.Array, views: Views | None) -> jax.Array:
    """Returns each target's state at the last event of its history, [B, D].

    An empty history has the state of its first row, which is padding.

    Args:
      states: [V, L, D] of rows, of which bool [V, L] are `valid`.
    """
    if views is None:
        return last_valid(states, valid)
    return last_valid(states, views.never_empty(valid))
