"""Defines the decoder of CRS: Qwen3 (arXiv 2505.09388) in Flax linen.

Grouped-query attention with normalised queries and keys, rotary positions, SwiGLU, and logits from
the embedding. Layers are scanned: a layer's parameters are stacked along a leading axis.

Rows read several tokens at once or one: N rows of Q new tokens a user, over segments of earlier
tokens that several rows share (a prompt by all rows of a user, its reasoning by the beams after
it), so that no beam copies what all beams share. Axis letters: B users, N rows, Q new tokens, M
parts of a segment, S its tokens, D width, H query heads, K key heads, E width of a head, W words.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from core.partitioning import Partition
from crs_jax.decoder_config import DecoderConfig

_MASKED = -1e30
_init = nn.initializers.normal(0.02)  # as Qwen3's own

# Logical axes by the end of a parameter's path; "layers" is the scanned axis.
LOGICAL_AXES: dict[str, tuple[str | None, ...]] = {
    "embedder/embedding": ("vocab", "embed"),
    "embedder/new_embedding": (None, "embed"),
    "attention/query/kernel": ("layers", "embed", "heads"),
    "attention/key/kernel": ("layers", "embed", "heads"),
    "attention/value/kernel": ("layers", "embed", "heads"),
    "attention/out/kernel": ("layers", "heads", "embed"),
    "mlp/gate/kernel": ("layers", "embed", "mlp"),
    "mlp/up/kernel": ("layers", "embed", "mlp"),
    "mlp/down/kernel": ("layers", "mlp", "embed"),
    "final_norm/scale": (None,),
    "norm/scale": ("layers", None),
    "lora_a": ("layers", None, None),
    "lora_b": ("layers", None, None),
}


class KeysValues(NamedTuple):
    """Keys and values of new tokens, [layers, B, N, Q, K, E]; inside a layer without its axis."""

    keys: jax.Array
    values: jax.Array


class Segment(NamedTuple):
    """Holds earlier tokens: part m of a user is read by rows m*N/M to (m+1)*N/M - 1.

    Attributes:
      keys, values: [layers, B, M, S, K, E].
      valid: bool [B, M, S].
    """

    keys: jax.Array
    values: jax.Array
    valid: jax.Array


class Norm(nn.Module):
    """Divides by the root mean square over the last axis; statistics in float32."""

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.float32)
        unit = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.epsilon)
        return (unit * scale).astype(self.dtype)


class Dense(nn.Module):
    """Computes x @ (kernel + alpha/r a @ b), no bias; the second term is LoRA's (arXiv
    2106.09685).
    """

    config: DecoderConfig
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        kernel = self.param("kernel", _init, (x.shape[-1], self.features), jnp.float32)
        y = x @ kernel.astype(x.dtype)
        if c.lora_rank:
            a = self.param("lora_a", _init, (x.shape[-1], c.lora_rank), jnp.float32)
            b = self.param(
                "lora_b", nn.initializers.zeros, (c.lora_rank, self.features), jnp.float32
            )
            y += (x @ a.astype(x.dtype)) @ b.astype(x.dtype) * (c.lora_alpha / c.lora_rank)
        return y


def rotate(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Applies rotary positions (arXiv 2104.09864) in the two halves' form: [..., heads, E].

    Args:
      x: [..., heads, E].
      positions: int32 [...].
    """
    half = x.shape[-1] // 2
    frequency = 1.0 / theta ** (np.arange(half, dtype=np.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x.dtype)


class Attention(nn.Module):
    """Lets new tokens attend to the segments' tokens and, causally, to themselves."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, positions: jax.Array, mask: jax.Array, past: tuple[Segment, ...]
    ) -> tuple[jax.Array, KeysValues]:
        c = self.config
        b, n, q, _ = x.shape

        def project(name, heads):
            return Dense(c, heads * c.head_dim, name=name)(x).reshape(b, n, q, heads, c.head_dim)

        query = Norm(c.norm_epsilon, x.dtype, name="query_norm")(project("query", c.heads))
        key = Norm(c.norm_epsilon, x.dtype, name="key_norm")(project("key", c.kv_heads))
        query = rotate(query, positions, c.rope_theta) * c.head_dim**-0.5
        own = KeysValues(rotate(key, positions, c.rope_theta), project("value", c.kv_heads))
        query = query.reshape(b, n, q, c.kv_heads, -1, c.head_dim)
        logits = [
            jnp.where(
                mask[:, :, None, None],
                jnp.einsum("bnqkre,bnske->bnkrqs", query, own.keys).astype(jnp.float32),
                _MASKED,
            )
        ]
        for segment in past:
            parts = segment.keys.shape[1]
            grouped = query.reshape(b, parts, n // parts, *query.shape[2:])
            scores = jnp.einsum("bmjqkre,bmske->bmjkrqs", grouped, segment.keys)
            scores = jnp.where(
                segment.valid[:, :, None, None, None, None], scores.astype(jnp.float32), _MASKED
            )
            logits.append(scores.reshape(b, n, *scores.shape[3:]))
        weights = jax.nn.softmax(jnp.concatenate(logits, -1), -1).astype(x.dtype)
        ends = np.cumsum([part.shape[-1] for part in logits])[:-1]
        first, *others = jnp.split(weights, ends, -1)
        y = jnp.einsum("bnkrqs,bnske->bnqkre", first, own.values)
        for segment, part in zip(past, others, strict=True):
            parts = segment.values.shape[1]
            grouped = part.reshape(b, parts, n // parts, *part.shape[2:])
            read = jnp.einsum("bmjkrqs,bmske->bmjqkre", grouped, segment.values)
            y += read.reshape(y.shape)
        return Dense(c, c.width, name="out")(y.reshape(b, n, q, -1)), own


class Mlp(nn.Module):
    """Computes SwiGLU: down(silu(gate x) * up x)."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        gate = nn.silu(Dense(c, c.mlp_dim, name="gate")(x))
        return Dense(c, c.width, name="down")(gate * Dense(c, c.mlp_dim, name="up")(x))


class Layer(nn.Module):
    """Applies attention and SwiGLU, each normalised before and added after."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, past: tuple[Segment, ...], positions: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, KeysValues]:
        c = self.config
        y = Norm(c.norm_epsilon, x.dtype, name="attention_norm")(x)
        y, own = Attention(c, name="attention")(y, positions, mask, past)
        x = x + y
        y = Norm(c.norm_epsilon, x.dtype, name="mlp_norm")(x)
        return x + Mlp(c, name="mlp")(y), own


class Embedder(nn.Module):
    """Embeds tokens with a checkpoint's rows and new ones, and is the output layer."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        self.embedding = self.param("embedding", _init, (c.text_rows, c.width), jnp.float32)
        self.new_embedding = self.param("new_embedding", _init, (c.new_rows, c.width), jnp.float32)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        c = self.config
        text = jnp.take(self.embedding, jnp.minimum(tokens, c.text_rows - 1), 0)
        new = jnp.take(self.new_embedding, jnp.maximum(tokens - c.text_rows, 0), 0, mode="clip")
        rows = jnp.where((tokens < c.text_rows)[..., None], text, new)
        return rows.astype(c.compute_dtype)

    def attend(self, x: jax.Array) -> jax.Array:
        """Logits float32 [..., W] of [..., D]."""
        # Two products: a table of all rows would be made anew for every token.
        tables = (self.embedding, self.new_embedding)
        parts = [
            jnp.einsum("...d,wd->...w", x, t.astype(x.dtype), preferred_element_type=jnp.float32)
            for t in tables
        ]
        return jnp.concatenate(parts, -1)


class Decoder(nn.Module):
    """Computes the whole network; token ids from `text_rows` on are the new rows'."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        self.embedder = Embedder(c)
        layer = nn.remat(Layer, prevent_cse=False) if c.remat else Layer
        self.layers = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=c.layers,
        )(c)
        self.final_norm = Norm(c.norm_epsilon, c.compute_dtype)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        past: tuple[Segment, ...] = (),
    ) -> tuple[jax.Array, KeysValues]:
        """Reads new tokens after the tokens of `past`.

        Args:
          tokens, positions: int32 [B, N, Q].
          segment_ids: int32 [B, N, Q], the example that each token of a packed row belongs to,
            from 1; 0 is padding. Rows over a past have one example.
          past: earlier tokens, the whole of which every new token may see.

        Returns:
          (states [B, N, Q, D] for `logits`, keys and values [layers, B, N, Q, K, E]).
        """
        chex.assert_equal_shape([tokens, positions, segment_ids])
        return self.read_embedded(self.embedder(tokens), positions, segment_ids, past)

    def read_embedded(
        self,
        embedded: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        past: tuple[Segment, ...] = (),
    ) -> tuple[jax.Array, KeysValues]:
        """Reads vectors [B, N, Q, D] that stand in for embedded tokens, as `__call__` does."""
        order = np.arange(embedded.shape[-2])
        mask = segment_ids[..., :, None] == segment_ids[..., None, :]
        mask &= (order[:, None] >= order) & (segment_ids > 0)[..., None, :]
        scanned = tuple(Segment(*self._by_layer(segment)) for segment in past)
        x, own = self.layers(embedded, scanned, positions, mask)
        return self.final_norm(x), own

    def _by_layer(self, segment: Segment) -> Segment:
        valid = jnp.broadcast_to(segment.valid, (self.config.layers, *segment.valid.shape))
        return Segment(segment.keys, segment.values, valid)

    def logits(self, states: jax.Array) -> jax.Array:
        """Logits float32 [..., W] of states [..., D]."""
        return self.embedder.attend(states)

    def read(self, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """Logits [B, N, Q, W] of whole rows: `__call__` and `logits` in one, for `init`."""
        return self.logits(self(tokens, positions, segment_ids)[0])


def init_params(config: DecoderConfig, key: jax.Array, partition: Partition | None = None) -> Any:
    """Draws random parameters of a network, each made where the partition has it."""
    token = jnp.ones((1, 1, 1), jnp.int32)

    def start(key):
        return Decoder(config).init(key, token, token, token, method="read")["params"]

    places = None if partition is None else partition.shardings(jax.eval_shape(start, key))
    # Traced whole: eager initialisation dispatches every operation by itself.
    return jax.jit(start, out_shardings=places)(key)


def logical_axes(params: Any) -> Any:
    """Names every parameter's axes, as a tree of tuples like `params`.

    Raises:
      ValueError: a parameter whose path `LOGICAL_AXES` does not know.
    """

    def of(path, leaf):
        name = "/".join(str(part.key) for part in path)
        for suffix, axes in LOGICAL_AXES.items():
            if name.endswith(suffix):
                chex.assert_rank(leaf, len(axes))
                return axes
        raise ValueError(f"no logical axes for {name}")

    return jax.tree_util.tree_map_with_path(of, params)
