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

    Attributes:
      inputs: per layer its input rows [B, L, D]; the first is E_hat.
      hidden: H [B, L, D]; row 0 is `start` where the history is empty.
      mask: bool [B, L], rows that are events; all False for an empty history.
      row_mask: bool [B, L], rows of `hidden` that Eq. 8 sees: `mask`, and row 0 if it is empty.
      start: h^(0) [B, D], the last valid row of H or the learned start.
    """

    inputs: tuple[jax.Array, ...]
    hidden: jax.Array
    mask: jax.Array
    row_mask: jax.Array
    start: jax.Array


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
) -> SideHistory:
    """Encodes one side's history by Eq. 1.

    Dropout falls on the input rows and on the outputs of MSA and FFN, as in UniSAR.

    Args:
      layers: weights, in order.
      rows: E_hat [B, L, D], zero where `mask` is False.
      mask: bool [B, L], which rows are events.
      empty_start: [D], the learned start of an empty history.
    """
    length = rows.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    visible = causal[None] & mask[:, None, :]
    x = dropout.at(0)(rows)
    inputs = []
    for number, layer in enumerate(layers):
        inputs.append(x)
        parts = dropout.at(number + 1)
        attended = attention.self_attention(layer.msa, x, visible, heads)
        x = add_and_norm(block, layer.msa_norm, x, parts.at(0)(attended))
        x = apply_ffn(block, layer, x, parts.at(1))
    empty = ~mask.any(-1)
    start = jnp.where(empty[:, None], empty_start, attention.last_valid(x, mask))
    first_row = jnp.where(empty[:, None], empty_start, x[:, 0])
    return SideHistory(
        inputs=tuple(inputs),
        hidden=x.at[:, 0].set(first_row),
        mask=mask,
        row_mask=mask.at[:, 0].set(mask[:, 0] | empty),
        start=start,
    )
