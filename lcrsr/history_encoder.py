"""Encodes the histories, 3.2.2 and Eq. 1: one encoder a side, whose layers the reasoning steps
share.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lcrsr import attention
from lcrsr.views import Views

BLOCKS = ("post_ln", "printed")


class LayerWeights(NamedTuple):
    """Holds one layer of one side.

    MSA, FFN and their norms serve both the encoder and the reasoning; MCA and its norm the
    reasoning alone.
    """

    msa: attention.AttentionWeights
    msa_norm: attention.NormWeights
    ffn: attention.FeedForwardWeights
    ffn_norm: attention.NormWeights
    mca: attention.AttentionWeights
    mca_norm: attention.NormWeights


@flax.struct.dataclass
class SideHistory:
    """Holds one side's encoded history.

    A history of its own is a window of one target: V = B. Larger windows hold the rows of B / V
    targets each (`lcrsr.views`).

    Attributes:
      inputs: per layer its input rows [V, L, D]; the first is E_hat.
      hidden: H [V, L, D]; rows that are no events hold the learned start of an empty history.
      mask: bool [B, L], events of the target's history; all False for an empty one.
      row_mask: bool [B, L], rows of `hidden` that Eq. 8 sees: `mask`, and one if it is empty.
      start: h^(0) [B, D], the last valid row of H or the learned start.
      recent: [B, D], the weighted sum of the latest events' rows (`lcrsr.query`); None where items
        are scored by Eq. 10.
    """

    inputs: tuple[jax.Array, ...]
    hidden: jax.Array
    mask: jax.Array
    row_mask: jax.Array
    start: jax.Array
    recent: jax.Array | None = None


def _random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns uint16 [shape]; mapped over keys, each draws the bits that it draws alone.

    JAX's own rule for the generator of accelerators draws them all from the first key.
    """

    @jax.custom_batching.custom_vmap
    def draw(key):
        return jax.random.bits(key, shape, jnp.uint16)

    @draw.def_vmap
    def draw_each(size, batched, keys):
        del size
        return jax.lax.map(draw, keys), batched[0]

    return draw(key)


class Dropout(NamedTuple):
    """Holds dropout as a value: no key or a rate of 0 drops nothing; `at(i)` draws on its own."""

    key: jax.Array | None
    rate: float

    def at(self, index: int | jax.Array) -> Dropout:
        return self if self.key is None else Dropout(jax.random.fold_in(self.key, index), self.rate)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.key is None or self.rate == 0.0:
            return x
        # 16 random bits an element: drawing 32 for a uniform cost a quarter of a training step.
        bits = _random_bits(self.key, x.shape)
        return jnp.where(bits >= round(self.rate * 2**16), x / (1.0 - self.rate), 0.0)


class Layer(nn.Module):
    """Holds `LayerWeights`."""

    width: int
    ffn_width: int

    @nn.compact
    def __call__(self) -> LayerWeights:
        return LayerWeights(
            attention.Attention(self.width, name="msa")(),
            attention.Norm(self.width, name="msa_norm")(),
            attention.FeedForward(self.width, self.ffn_width, name="ffn")(),
            attention.Norm(self.width, name="ffn_norm")(),
            attention.Attention(self.width, name="mca")(),
            attention.Norm(self.width, name="mca_norm")(),
        )


def add_and_norm(
    block: str, norm: attention.NormWeights, residual: jax.Array, update: jax.Array
) -> jax.Array:
    """Computes LN(residual + update); the printed equations have the sum alone."""
    total = residual + update
    return attention.normalise(norm, total) if block == "post_ln" else total


def apply_ffn(block: str, layer: LayerWeights, x: jax.Array, dropout: Dropout) -> jax.Array:
    """Computes LN(x + FFN(x)); as printed FFN(x)."""
    update = dropout(attention.feed_forward(layer.ffn, x))
    return add_and_norm(block, layer.ffn_norm, x, update) if block == "post_ln" else update


def encode(
    layers: tuple[LayerWeights, ...],
    rows: jax.Array,
    mask: jax.Array,
    empty_start: jax.Array,
    *,
    heads: int,
    block: str,
    dropout: Dropout,
    views: Views | None = None,
) -> SideHistory:
    """Encodes one side's history by Eq. 1.

    Dropout falls on the input rows and on the outputs of MSA and FFN, as in UniSAR.

    Args:
      layers: weights, in order.
      rows: E_hat [V, L, D], zero where `mask` is False.
      mask: bool [V, L], which rows are events.
      empty_start: [D], the learned start of an empty history.
      views: of windows; None where each target has a history of its own.
    """
    length = rows.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))[None] if views is None else views.band()
    visible = causal & mask[:, None, :]
    x = dropout.at(0)(rows)
    inputs = []
    for number, layer in enumerate(layers):
        inputs.append(x)
        parts = dropout.at(number + 1)
        attended = attention.self_attention(layer.msa, x, visible, heads)
        x = add_and_norm(block, layer.msa_norm, x, parts.at(0)(attended))
        x = apply_ffn(block, layer, x, parts.at(1))
    events, first = (mask, 0) if views is None else (views.of_targets(mask), views.first[:, None])
    empty = ~events.any(-1, keepdims=True)
    return SideHistory(
        inputs=tuple(inputs),
        hidden=jnp.where(mask[..., None], x, empty_start),
        mask=events,
        row_mask=events | (empty & (jnp.arange(length) == first)),
        start=jnp.where(empty, empty_start, attention.last_valid(x, events)),
    )
