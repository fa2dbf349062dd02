"""Holds one side's attention, feed-forward and normalisation weights, and the functions that use
them.

Modules here only hold parameters; the arithmetic is in plain functions over arrays, so that the
encoder and the reasoning steps (inside `jax.lax.scan`) share it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

_MASKED = -1e9


class AttentionWeights(NamedTuple):
    """Projections [D, D] and biases [D] of one multi-head attention."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    out: jax.Array
    query_bias: jax.Array
    key_bias: jax.Array
    value_bias: jax.Array
    out_bias: jax.Array


class FeedForwardWeights(NamedTuple):
    """Holds W1 [D, F], b1 [F], W2 [F, D], b2 [D]."""

    in_kernel: jax.Array
    in_bias: jax.Array
    out_kernel: jax.Array
    out_bias: jax.Array


class NormWeights(NamedTuple):
    """Holds scale and bias [D] of a layer norm."""

    scale: jax.Array
    bias: jax.Array


class Attention(nn.Module):
    """Holds `AttentionWeights`: Xavier-uniform kernels, zero biases."""

    width: int

    @nn.compact
    def __call__(self) -> AttentionWeights:
        d, xavier = self.width, nn.initializers.xavier_uniform()
        kernels = [self.param(n, xavier, (d, d)) for n in ("query", "key", "value", "out")]
        biases = [
            self.param(f"{n}_bias", nn.initializers.zeros, (d,))
            for n in ("query", "key", "value", "out")
        ]
        return AttentionWeights(*kernels, *biases)


class FeedForward(nn.Module):
    """Holds `FeedForwardWeights`."""

    width: int
    ffn_width: int

    @nn.compact
    def __call__(self) -> FeedForwardWeights:
        xavier, zeros = nn.initializers.xavier_uniform(), nn.initializers.zeros
        return FeedForwardWeights(
            self.param("in_kernel", xavier, (self.width, self.ffn_width)),
            self.param("in_bias", zeros, (self.ffn_width,)),
            self.param("out_kernel", xavier, (self.ffn_width, self.width)),
            self.param("out_bias", zeros, (self.width,)),
        )


class Norm(nn.Module):
    """Holds `NormWeights`."""

    width: int

    @nn.compact
    def __call__(self) -> NormWeights:
        return NormWeights(
            self.param("scale", nn.initializers.ones, (self.width,)),
            self.param("bias", nn.initializers.zeros, (self.width,)),
        )


def cast(weights: Any, dtype: Any) -> Any:
    """Returns the weights in the dtype of the computation."""
    return jax.tree.map(lambda w: w.astype(dtype), weights)


def normalise(weights: NormWeights, x: jax.Array) -> jax.Array:
    """Applies layer norm over the last axis, statistics in float32."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    unit = centred * jax.lax.rsqrt(variance + 1e-6)
    return (unit * weights.scale + weights.bias).astype(x.dtype)


def feed_forward(weights: FeedForwardWeights, x: jax.Array) -> jax.Array:
    """Computes W2 relu(W1 x + b1) + b2."""
    hidden = jax.nn.relu(x @ weights.in_kernel + weights.in_bias)
    return hidden @ weights.out_kernel + weights.out_bias


def masked_softmax(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Computes softmax over the last axis in float32; zeros, without gradients, where nothing is
    valid.

    Args:
      logits: [..., L].
      mask: bool, broadcastable to `logits`.
    """
    logits = jnp.where(mask, logits.astype(jnp.float32), _MASKED)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    weights = jnp.where(mask, weights, 0.0)
    total = weights.sum(-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


def last_valid(states: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the states [B, D] of the last valid rows of [B, L, D]; row 0 where none is valid.

    The last row is found by its place and not by counting, so that rows in between may be invalid.

    Args:
      states: [B, L, D], or [V, L, D] of windows that each hold B / V targets in order.
      valid: bool [B, L].
    """
    windows, _, width = states.shape
    places = jnp.where(valid, jnp.arange(valid.shape[1]), 0).max(1)
    return jnp.take_along_axis(states, places.reshape(windows, -1, 1), 1).reshape(-1, width)


def self_attention(weights: AttentionWeights, x: jax.Array, mask: jax.Array, heads: int):
    """Computes MSA of a whole history, Eq. 1.

    Args:
      x: [B, L, D].
      mask: bool [B, L, L] (query, key).

    Returns:
      [B, L, D]; rows whose mask is empty give the output bias alone.
    """
    b, length, d = x.shape
    kernel = jnp.concatenate([weights.query, weights.key, weights.value], 1)
    bias = jnp.concatenate([weights.query_bias, weights.key_bias, weights.value_bias])
    qkv = (x.reshape(b * length, d) @ kernel + bias).reshape(b, length, 3, heads, d // heads)
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    logits = jnp.einsum("bqhe,bkhe->bhqk", q, k) * (d // heads) ** -0.5
    attended = masked_softmax(logits, mask[:, None]).astype(x.dtype)
    mixed = jnp.einsum("bhqk,bkhe->bqhe", attended, v).reshape(b, length, d)
    return mixed @ weights.out + weights.out_bias


def attend(
    weights: AttentionWeights,
    query: jax.Array,
    contexts: tuple[jax.Array, ...],
    masks: tuple[jax.Array, ...],
    heads: int,
) -> jax.Array:
    """Computes the attention of one query a user over rows that lie in several arrays, Eq. 3-5.

    The query is folded with the key projection and the values are projected after they are mixed,
    so the rows themselves are never projected: q_h . (W_k e) = (W_k^T q_h) . e. The key bias adds
    the same to every row and cancels in the softmax.

    Args:
      query: [B, D].
      contexts: arrays [B, L_i, D] of raw rows, or [V, L_i, D] of windows that each hold B / V
        queries in order.
      masks: bool [B, L_i] each.
      heads: H.

    Returns:
      [B, D]; zero for a user none of whose rows is valid.
    """
    b, d = query.shape
    e = d // heads
    q = ((query @ weights.query + weights.query_bias) * e**-0.5).reshape(b, heads, e)
    folded = jnp.einsum("bhe,dhe->bhd", q, weights.key.reshape(d, heads, e))
    logits = jnp.concatenate([shared_products(folded, c) for c in contexts], -1)
    mask = jnp.concatenate(masks, -1)
    attended = masked_softmax(logits, mask[:, None]).astype(query.dtype)
    mixed = jnp.zeros_like(folded)
    start = 0
    for context in contexts:
        part = attended[:, :, start : start + context.shape[1]]
        mixed += shared_mixtures(part, context)
        start += context.shape[1]
    values = jnp.einsum("bhd,dhe->bhe", mixed, weights.value.reshape(d, heads, e)).reshape(b, d)
    out = (values + weights.value_bias) @ weights.out + weights.out_bias
    return jnp.where(mask.any(-1)[:, None], out, 0.0)


def shared_products(queries: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns the products of queries [B, Q, D] with rows [V, L, D]: [B, Q, L].

    Window v's rows are those of queries v * B / V onwards, and meet them all in one product.
    """
    b, q, d = queries.shape
    windows, length, _ = rows.shape
    together = queries.reshape(windows, b // windows * q, d)
    return jnp.einsum("vqd,vld->vql", together, rows).reshape(b, q, length)


def shared_mixtures(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns the sums of rows [V, L, D] with weights [B, Q, L]: [B, Q, D]; see
    `shared_products`.
    """
    b, q, length = weights.shape
    windows, _, d = rows.shape
    together = weights.reshape(windows, b // windows * q, length)
    return jnp.einsum("vql,vld->vqd", together, rows).reshape(b, q, d)
