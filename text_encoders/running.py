"""Runs an encoder over many texts: in order of their lengths, in batches of few shapes.

Axis letters: E texts, B texts of a batch, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from text_encoders.sentence_settings import FIRST, MEAN

# Tokens of a batch, its padding included, and the widths that rows are padded to.
_TOKENS = 8192
_WIDTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def pooled(states: jax.Array, lengths: jax.Array, pooling: str) -> jax.Array:
    """Returns one vector a text, float32 [B, D], of its tokens' states.

    Args:
      states: [B, L, D], the tokens of a text first, padding after them.
      lengths: int32 [B], tokens of each text.
      pooling: as of `sentence_settings`.
    """
    if pooling == FIRST:
        return states[:, 0]
    if pooling == MEAN:
        valid = jnp.arange(states.shape[1]) < lengths[:, None]
        total = jnp.where(valid[..., None], states, 0.0).sum(1)
        return total / jnp.maximum(lengths, 1)[:, None]
    last = jnp.maximum(lengths - 1, 0)
    return jnp.take_along_axis(states, last[:, None, None], 1)[:, 0]


def run_over(
    rows: Sequence[np.ndarray], encode: Callable[[np.ndarray, np.ndarray], jax.Array]
) -> np.ndarray:
    """Returns the vectors float32 [E, D] of tokenized texts.

    Args:
      rows: tokens int32 [L] of each text, at least one.
      encode: from tokens int32 [B, L], padded with 0, and lengths int32 [B], 0 of rows that are
        padding, to vectors [B, D]; compiled for each shape.
    """
    lengths = np.array([len(row) for row in rows], np.int32)
    order = np.argsort(lengths, kind="stable")
    vectors: list[np.ndarray] = []
    start = 0
    while start < len(order):
        width = _width(int(lengths[order[start]]))
        most = max(1, _TOKENS // width)
        chosen = order[start : start + most]
        chosen = chosen[lengths[chosen] <= width]
        # Powers of two, so that few texts compile few shapes.
        size = min(most, 1 << (len(chosen) - 1).bit_length())
        tokens, of_rows = np.zeros((size, width), np.int32), np.zeros(size, np.int32)
        for place, number in enumerate(chosen):
            tokens[place, : lengths[number]] = rows[number]
            of_rows[place] = lengths[number]
        vectors.append(np.asarray(encode(tokens, of_rows), np.float32)[: len(chosen)])
        start += len(chosen)
    placed = np.concatenate(vectors)
    placed[order] = placed.copy()
    return placed


def _width(length: int) -> int:
    """Returns the least width for rows of a length."""
    longer = -(-length // _WIDTHS[-1]) * _WIDTHS[-1]
    return next((width for width in _WIDTHS if width >= length), longer)
