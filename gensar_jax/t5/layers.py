"""Defines T5's layers with the names, shapes, initialisers and logical axes of T5X's minimal
network.

Axis letters: B batch, Q and T query and key positions, K beams, D width, H heads, E width of a
head, F hidden width of the feed-forward block, W words.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import partitioning

from gensar_jax.t5.config import T5Config

# Of the layer norms, before the root.
NORM_EPSILON = 1e-6
_MASKED = -1e10
_attention_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
_mlp_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_relpos_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


class KeysValues(NamedTuple):
    """Keys and values of one attention, [B, T, H, E], or [B, K, T, H, E] with beams."""

    keys: jax.Array
    values: jax.Array


class Dense(nn.Module):
    """Computes x @ kernel, no bias."""

    features: int
    axes: tuple[str, str]
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = _mlp_init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = partitioning.param_with_axes(
            "kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32, axes=self.axes
        )
        return x.astype(self.dtype) @ kernel.astype(self.dtype)


class LayerNorm(nn.Module):
    """Divides by the root mean square, without mean or bias; statistics in float32."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = partitioning.param_with_axes(
            "scale", nn.initializers.ones, (x.shape[-1],), jnp.float32, axes=("embed",)
        )
        wide = x.astype(jnp.float32)
        unit = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + NORM_EPSILON)
        return unit.astype(self.dtype) * scale.astype(self.dtype)


class Embed(nn.Module):
    """Rows of the vocabulary, and the output layer of version 1.0."""

    config: T5Config

    def setup(self):
        self.embedding = partitioning.param_with_axes(
            "embedding",
            nn.initializers.normal(1.0),
            (self.config.vocab_size, self.config.emb_dim),
            jnp.float32,
            axes=("vocab", "embed"),
        )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return jnp.take(self.embedding, tokens, 0, mode="clip").astype(self.config.compute_dtype)

    def attend(self, x: jax.Array) -> jax.Array:
        """Logits float32 [..., W] of [..., D]."""
        # The scale goes to the narrow side, before the product with the vocabulary.
        return (x.astype(jnp.float32) * self.config.emb_dim**-0.5) @ self.embedding.T


def relative_position_bucket(
    relative: np.ndarray, bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
    """Returns the bucket of each key position minus query position: exact when near, logarithmic
    when far.

    Source: Raffel et al., JMLR 2020, section 2.1.
    """
    bucket = np.zeros_like(relative)
    distance = -relative
    if bidirectional:
        num_buckets //= 2
        bucket = np.where(distance < 0, num_buckets, 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(distance, 0)
    exact = num_buckets // 2
    # float32 with an epsilon, as T5X computes it, decides where the boundaries fall.
    ratio = distance.astype(np.float32) / exact + np.finfo(np.float32).eps
    scale = (num_buckets - exact) / np.log(max_distance / exact)
    far = exact + (np.log(ratio) * scale).astype(np.int32)
    return bucket + np.where(distance < exact, distance, np.minimum(far, num_buckets - 1))


class RelativePositionBiases(nn.Module):
    """Returns what a head adds to the logit of a query and a key, by how far apart they are."""

    config: T5Config
    bidirectional: bool

    @nn.compact
    def __call__(self, queries: np.ndarray, keys: np.ndarray) -> jax.Array:
        """Biases float32 [H, Q, T] of positions [Q] and [T]."""
        c = self.config
        table = partitioning.param_with_axes(
            "rel_embedding",
            _relpos_init,
            (c.num_heads, c.num_buckets),
            jnp.float32,
            axes=("heads", "relpos_buckets"),
        )
        buckets = relative_position_bucket(
            keys[None] - queries[:, None], self.bidirectional, c.num_buckets, c.max_distance
        )
        return table[:, buckets]


class Attention(nn.Module):
    """Applies multi-head attention; T5 folds the scale of the logits into the initialisation."""

    config: T5Config

    def setup(self):
        c = self.config
        width, dtype = c.num_heads * c.head_dim, c.compute_dtype

        def query_init(key, shape, dtype=jnp.float32):
            return _attention_init(key, shape, dtype) / np.sqrt(c.head_dim)

        inner = ("embed", "joined_kv")
        self.query = Dense(width, inner, dtype, query_init)
        self.key = Dense(width, inner, dtype, _attention_init)
        self.value = Dense(width, inner, dtype, _attention_init)
        self.out = Dense(c.emb_dim, ("joined_kv", "embed"), dtype, _attention_init)
        self.dropout = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))

    def _heads(self, x: jax.Array) -> jax.Array:
        x = x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)
        if x.ndim == 4:
            x = partitioning.with_sharding_constraint(x, ("batch", "length", "heads", "kv"))
        return x

    def project(self, inputs: jax.Array) -> KeysValues:
        """Keys and values [..., H, E] of rows [..., D]."""
        return KeysValues(self._heads(self.key(inputs)), self._heads(self.value(inputs)))

    def __call__(
        self,
        x: jax.Array,
        context: KeysValues,
        bias: jax.Array,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Attends to a context that all rows of x share.

        Args:
          x: [B, Q, D]; beams may take the place of the queries.
          context: [B, T, H, E].
          bias: float32, broadcastable to [B, H, Q, T]; masks included.
        """
        query = self._heads(self.query(x))
        logits = jnp.einsum("bqhe,bthe->bhqt", query, context.keys).astype(jnp.float32)
        weights = jax.nn.softmax(logits + bias).astype(x.dtype)
        weights = self.dropout(weights, deterministic=deterministic)
        mixed = jnp.einsum("bhqt,bthe->bqhe", weights, context.values)
        return self.out(mixed.reshape(*x.shape[:-1], -1))

    def attend_own(self, x: jax.Array, context: KeysValues, bias: jax.Array) -> jax.Array:
        """Attends, in each beam, to what that beam has read.

        Args:
          x: [B, K, D].
          context: [B, K, T, H, E].
          bias: float32 [H, T].
        """
        query = self._heads(self.query(x))
        # One query a beam: products that fuse are faster than B K H matrix products of one row.
        logits = (query[:, :, None] * context.keys).astype(jnp.float32).sum(-1) + bias.T
        weights = jax.nn.softmax(logits, 2).astype(x.dtype)
        mixed = (weights[..., None] * context.values).sum(2)
        return self.out(mixed.reshape(*x.shape[:-1], -1))


class MlpBlock(nn.Module):
    """Computes relu(x wi) wo, or the gated gelu(x wi_0) (x wi_1) wo of version 1.1."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> jax.Array:
        c = self.config
        axes = ("embed", "mlp")
        if len(c.mlp_activations) == 1:
            hidden = jax.nn.relu(Dense(c.mlp_dim, axes, c.compute_dtype, name="wi")(x))
        else:
            gate = Dense(c.mlp_dim, axes, c.compute_dtype, name="wi_0")(x)
            linear = Dense(c.mlp_dim, axes, c.compute_dtype, name="wi_1")(x)
            hidden = jax.nn.gelu(gate, approximate=True) * linear
        hidden = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))(
            hidden, deterministic=deterministic
        )
        hidden = partitioning.with_sharding_constraint(hidden, ("batch", "length", "mlp"))
        return Dense(c.emb_dim, axes[::-1], c.compute_dtype, name="wo")(hidden)


def mask_bias(mask: jax.Array) -> jax.Array:
    """Returns 0 where `mask` is true and a large negative number elsewhere, float32."""
    return jnp.where(mask, 0.0, _MASKED)
