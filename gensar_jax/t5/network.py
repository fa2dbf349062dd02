"""Defines the encoder-decoder, T5 1.0 and 1.1.

Source: Raffel et al., JMLR 2020; parameters as in T5X's minimal network (`Transformer`): names,
shapes, initialisers, and logical axes in the collection `params_axes`.
"""

from __future__ import annotations

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import partitioning

from gensar_jax.t5.config import T5Config
from gensar_jax.t5.layers import (
    Attention,
    Dense,
    Embed,
    KeysValues,
    LayerNorm,
    MlpBlock,
    RelativePositionBiases,
    mask_bias,
)


class EncoderLayer(nn.Module):
    """Applies self-attention and a feed-forward block, each normalised before and added after."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, *, deterministic: bool) -> jax.Array:
        c = self.config
        dropout = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,), deterministic=deterministic)
        y = LayerNorm(c.compute_dtype, name="pre_attention_layer_norm")(x)
        attention = Attention(c, name="attention")
        x = x + dropout(attention(y, attention.project(y), bias, deterministic=deterministic))
        y = LayerNorm(c.compute_dtype, name="pre_mlp_layer_norm")(x)
        return x + dropout(MlpBlock(c, name="mlp")(y, deterministic=deterministic))


class Encoder(nn.Module):
    """Encodes tokens; padding (0) is not attended to."""

    config: T5Config
    shared_embedding: nn.Module

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array, *, deterministic: bool) -> jax.Array:
        """Returns [B, T, D] of tokens [B, T] under a mask [B, 1, T, T] (query, key)."""
        c = self.config
        positions = np.arange(tokens.shape[1])
        relative = RelativePositionBiases(c, bidirectional=True, name="relpos_bias")
        bias = mask_bias(mask) + relative(positions, positions)
        dropout = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,), deterministic=deterministic)
        x = dropout(self.shared_embedding(tokens))
        x = partitioning.with_sharding_constraint(x, ("batch", "length", "embed"))
        for i in range(c.num_encoder_layers):
            x = EncoderLayer(c, name=f"layers_{i}")(x, bias, deterministic=deterministic)
        x = LayerNorm(c.compute_dtype, name="encoder_norm")(x)
        return nn.Dropout(c.dropout_rate)(x, deterministic=deterministic)


class DecoderLayer(nn.Module):
    """Applies self-attention, attention to the encoder, and a feed-forward block."""

    config: T5Config

    def setup(self):
        c = self.config
        self.pre_self_attention_layer_norm = LayerNorm(c.compute_dtype)
        self.self_attention = Attention(c)
        self.pre_cross_attention_layer_norm = LayerNorm(c.compute_dtype)
        self.encoder_decoder_attention = Attention(c)
        self.pre_mlp_layer_norm = LayerNorm(c.compute_dtype)
        self.mlp = MlpBlock(c)
        self.dropout = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))

    def __call__(
        self,
        x: jax.Array,
        encoded: jax.Array,
        bias: jax.Array,
        cross_bias: jax.Array,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """Returns [B, S, D] of rows [B, S, D], all at once."""
        y = self.pre_self_attention_layer_norm(x)
        own = self.self_attention.project(y)
        y = self.self_attention(y, own, bias, deterministic=deterministic)
        x = x + self.dropout(y, deterministic=deterministic)
        return self._rest(x, self.project(encoded), cross_bias, deterministic)

    def step(
        self,
        x: jax.Array,
        cache: KeysValues,
        bias: jax.Array,
        context: KeysValues,
        cross_bias: jax.Array,
    ) -> tuple[jax.Array, KeysValues]:
        """Returns [B, K, D] of the next row of each beam [B, K, D], and the cache with it."""
        y = self.pre_self_attention_layer_norm(x)
        new = self.self_attention.project(y)
        cache = jax.tree.map(
            lambda old, row: jnp.concatenate([old, row[:, :, None]], 2), cache, new
        )
        x = x + self.self_attention.attend_own(y, cache, bias)
        return self._rest(x, context, cross_bias, True), cache

    def project(self, encoded: jax.Array) -> KeysValues:
        """Keys and values [B, T, H, E] of the encoder's output [B, T, D]."""
        return self.encoder_decoder_attention.project(encoded)

    def _rest(self, x, context, cross_bias, deterministic):
        y = self.pre_cross_attention_layer_norm(x)
        y = self.encoder_decoder_attention(y, context, cross_bias, deterministic=deterministic)
        x = x + self.dropout(y, deterministic=deterministic)
        y = self.mlp(self.pre_mlp_layer_norm(x), deterministic=deterministic)
        return x + self.dropout(y, deterministic=deterministic)


class Decoder(nn.Module):
    """Predicts the next token from those before it and the encoder's output."""

    config: T5Config
    shared_embedding: nn.Module

    def setup(self):
        c = self.config
        self.relpos_bias = RelativePositionBiases(c, bidirectional=False)
        self.layers = [DecoderLayer(c) for _ in range(c.num_decoder_layers)]
        self.decoder_norm = LayerNorm(c.compute_dtype)
        if not c.logits_via_embedding:
            self.logits_dense = Dense(c.vocab_size, ("embed", "vocab"), jnp.float32)
        self.dropout = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))

    def __call__(
        self,
        encoded: jax.Array,
        tokens: jax.Array,
        mask: jax.Array,
        cross_mask: jax.Array,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """Logits float32 [B, S, W] of tokens [B, S].

        Args:
          encoded: [B, T, D].
          tokens: int32 [B, S], targets shifted right by one.
          mask: bool [B, 1, S, S] (query, key).
          cross_mask: bool [B, 1, S, T].
          deterministic: no dropout.
        """
        states = self.states(encoded, tokens, mask, cross_mask, deterministic=deterministic)
        return self._logits(states)

    def states(
        self,
        encoded: jax.Array,
        tokens: jax.Array,
        mask: jax.Array,
        cross_mask: jax.Array,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """Returns what logits are made of, [B, S, D]; arguments as of `__call__`."""
        positions = np.arange(tokens.shape[1])
        bias = mask_bias(mask) + self.relpos_bias(positions, positions)
        cross_bias = mask_bias(cross_mask)
        x = self.dropout(self.shared_embedding(tokens), deterministic=deterministic)
        x = partitioning.with_sharding_constraint(x, ("batch", "length", "embed"))
        for layer in self.layers:
            x = layer(x, encoded, bias, cross_bias, deterministic=deterministic)
        return self.dropout(self.decoder_norm(x), deterministic=deterministic)

    def contexts(self, encoded: jax.Array) -> tuple[KeysValues, ...]:
        """Returns what the steps of all beams read: a layer's keys and values of the encoder's
        output.
        """
        return tuple(layer.project(encoded) for layer in self.layers)

    def step(
        self,
        tokens: jax.Array,
        cache: tuple[KeysValues, ...],
        contexts: tuple[KeysValues, ...],
        cross_mask: jax.Array,
    ) -> tuple[jax.Array, tuple[KeysValues, ...]]:
        """Logits [B, K, W] after one more token a beam [B, K], and the longer cache."""
        read = cache[0].keys.shape[2]
        bias = self.relpos_bias(np.array([read]), np.arange(read + 1))[:, 0]
        cross_bias = mask_bias(cross_mask)
        x = self.shared_embedding(tokens)
        longer = []
        for layer, own, context in zip(self.layers, cache, contexts, strict=True):
            x, own = layer.step(x, own, bias, context, cross_bias)
            longer.append(own)
        return self._logits(self.decoder_norm(x)), tuple(longer)

    def _logits(self, x):
        if self.config.logits_via_embedding:
            return self.shared_embedding.attend(x)
        return self.logits_dense(x)


class Transformer(nn.Module):
    """Computes the whole network; token 0 is padding and the decoder's start."""

    config: T5Config

    def setup(self):
        self.token_embedder = Embed(self.config)
        self.encoder = Encoder(self.config, self.token_embedder)
        self.decoder = Decoder(self.config, self.token_embedder)

    def __call__(
        self,
        encoder_input_tokens: jax.Array,
        decoder_input_tokens: jax.Array,
        decoder_target_tokens: jax.Array,
        encoder_segment_ids: jax.Array | None = None,
        decoder_segment_ids: jax.Array | None = None,
        *,
        enable_dropout: bool = True,
    ) -> jax.Array:
        """Logits float32 [B, S, W], teacher-forced; arguments are T5X's.

        Args:
          encoder_input_tokens: int32 [B, T].
          decoder_input_tokens: int32 [B, S], the targets shifted right by one, 0 first.
          decoder_target_tokens: int32 [B, S]; 0 is padding.
          encoder_segment_ids, decoder_segment_ids: int32 [B, T] and [B, S], the example that each
            place of a packed row belongs to, from 1; give both or none.
          enable_dropout: needs a 'dropout' key.
        """
        encoded = self.encode(
            encoder_input_tokens, encoder_segment_ids, enable_dropout=enable_dropout
        )
        return self.decode(
            encoded,
            encoder_input_tokens,
            decoder_input_tokens,
            decoder_target_tokens,
            encoder_segment_ids,
            decoder_segment_ids,
            enable_dropout=enable_dropout,
        )

    def encode(
        self,
        encoder_input_tokens: jax.Array,
        encoder_segment_ids: jax.Array | None = None,
        *,
        enable_dropout: bool = True,
    ) -> jax.Array:
        """Returns the encoder's output [B, T, D]."""
        chex.assert_rank(encoder_input_tokens, 2)
        valid = encoder_input_tokens > 0
        mask = valid[:, :, None] & valid[:, None]
        if encoder_segment_ids is not None:
            mask &= encoder_segment_ids[:, :, None] == encoder_segment_ids[:, None]
        return self.encoder(encoder_input_tokens, mask[:, None], deterministic=not enable_dropout)

    def decode(
        self,
        encoded: jax.Array,
        encoder_input_tokens: jax.Array,
        decoder_input_tokens: jax.Array,
        decoder_target_tokens: jax.Array,
        encoder_segment_ids: jax.Array | None = None,
        decoder_segment_ids: jax.Array | None = None,
        *,
        enable_dropout: bool = True,
    ) -> jax.Array:
        """Logits float32 [B, S, W] from the encoder's output; see `__call__`."""
        chex.assert_equal_shape([decoder_input_tokens, decoder_target_tokens])
        valid = decoder_target_tokens > 0
        order = np.arange(decoder_input_tokens.shape[1])
        mask = valid[:, :, None] & valid[:, None] & (order[:, None] >= order)
        cross_mask = valid[:, :, None] & (encoder_input_tokens > 0)[:, None]
        if decoder_segment_ids is not None and encoder_segment_ids is not None:
            mask &= decoder_segment_ids[:, :, None] == decoder_segment_ids[:, None]
            cross_mask &= decoder_segment_ids[:, :, None] == encoder_segment_ids[:, None]
        return self.decoder(
            encoded,
            decoder_input_tokens,
            mask[:, None],
            cross_mask[:, None],
            deterministic=not enable_dropout,
        )

    def states(
        self,
        encoder_input_tokens: jax.Array,
        decoder_input_tokens: jax.Array,
        *,
        enable_dropout: bool = True,
    ) -> jax.Array:
        """Returns the decoder's states [B, S, D] after each of its tokens [B, S], none padding.

        Args:
          encoder_input_tokens: int32 [B, T].
          decoder_input_tokens: int32 [B, S], the start 0 first.
        """
        encoded = self.encode(encoder_input_tokens, enable_dropout=enable_dropout)
        order = np.arange(decoder_input_tokens.shape[1])
        mask = jnp.asarray(order[:, None] >= order)[None, None]
        cross_mask = (encoder_input_tokens > 0)[:, None, None]
        return self.decoder.states(
            encoded, decoder_input_tokens, mask, cross_mask, deterministic=not enable_dropout
        )

    def contexts(self, encoded: jax.Array) -> tuple[KeysValues, ...]:
        """Returns the encoder's output [B, T, D] as the steps read it, [B, T, H, E] a layer."""
        return self.decoder.contexts(encoded)

    def empty_cache(self, batch: int) -> tuple[KeysValues, ...]:
        """Returns the cache of `step` before any token: one beam that has read nothing."""
        c = self.config
        empty = jnp.zeros((batch, 1, 0, c.num_heads, c.head_dim), c.compute_dtype)
        return tuple(KeysValues(empty, empty) for _ in range(c.num_decoder_layers))

    def step(
        self,
        tokens: jax.Array,
        cache: tuple[KeysValues, ...],
        contexts: tuple[KeysValues, ...],
        encoder_input_tokens: jax.Array,
    ) -> tuple[jax.Array, tuple[KeysValues, ...]]:
        """Reads one more token of each beam.

        Args:
          tokens: int32 [B, K].
          cache: of the tokens read so far, a layer's [B, K, t, H, E].
          contexts: of `contexts`.
          encoder_input_tokens: int32 [B, T], for its padding.

        Returns:
          (logits float32 [B, K, W], cache of t + 1 tokens).
        """
        mask = (encoder_input_tokens > 0)[:, None, None]
        return self.decoder.step(tokens, cache, contexts, mask)
