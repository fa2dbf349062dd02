"""Defines the encoder of BERT (arXiv 1810.04805) and XLM-R (arXiv 1911.02116) in Flax linen.

Learned positions, and a layer norm after each residual. Layers are scanned: a layer's parameters
are stacked along a leading axis. Axis letters: B texts, L tokens, D width, H heads, E width of a
head, F hidden width of the feed-forward block.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from core.settings import Count, CountOrNone, Positive, Settings

# Finite, so that rows of padding alone stay finite.
_MASKED = -1e30


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig(Settings):
    """Holds the shapes of a network.

    Attributes:
      vocabulary: rows of the word embedding.
      positions: rows of the position embedding.
      types: rows of the segment embedding, of which texts use the first.
      first_position: row of a text's first token: 0 of BERT, the padding token's id + 1 of XLM-R,
        whose padding has the row before it.
      width, layers, heads, mlp_dim: D, layers, H, F.
      norm_epsilon: of the layer norms.
    """

    vocabulary: Count
    positions: Count
    types: Count
    width: Count
    layers: Count
    heads: Count
    mlp_dim: Count
    norm_epsilon: Positive
    first_position: CountOrNone = 0

    def check(self) -> None:
        self.check_divisible("width", by="heads")
        if self.first_position >= self.positions:
            raise ValueError(
                f"expected more than {self.first_position} positions, found {self.positions}"
            )

    @property
    def most_tokens(self) -> int:
        """Returns the tokens of the longest text that there are positions for."""
        return self.positions - self.first_position


def position_rows(valid: jax.Array, first: int) -> jax.Array:
    """Returns the row of each token's position, int32 [B, L]; padding has the row before `first`.

    Args:
      valid: bool [B, L], False for padding.
      first: as `BertConfig.first_position`; with 0 padding has row 0.
    """
    counted = jnp.cumsum(valid.astype(jnp.int32), -1) * valid
    return jnp.maximum(counted + first - 1, 0)


class Norm(nn.Module):
    """Normalises over the last axis, with a scale and a bias."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # The fast variance is E[x^2] - E[x]^2, which loses digits.
        return nn.LayerNorm(self.epsilon, use_fast_variance=False, name="norm")(x)


class Layer(nn.Module):
    """Applies attention and a feed-forward block, each added and normalised after."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> tuple[jax.Array, None]:
        c = self.config
        b, length, _ = x.shape

        def heads(name: str) -> jax.Array:
            return nn.Dense(c.width, name=name)(x).reshape(b, length, c.heads, -1)

        query, key, value = heads("query"), heads("key"), heads("value")
        logits = jnp.einsum("bqhe,bkhe->bhqk", query, key) * query.shape[-1] ** -0.5
        weights = jax.nn.softmax(logits + bias, -1)
        y = jnp.einsum("bhqk,bkhe->bqhe", weights, value).reshape(x.shape)
        x = Norm(c.norm_epsilon, name="attention_norm")(x + nn.Dense(c.width, name="out")(y))
        y = nn.gelu(nn.Dense(c.mlp_dim, name="up")(x), approximate=False)
        y = nn.Dense(c.width, name="down")(y)
        return Norm(c.norm_epsilon, name="mlp_norm")(x + y), None


class Bert(nn.Module):
    """Computes the states of a text's tokens."""

    config: BertConfig

    @nn.compact
    def __call__(self, tokens: jax.Array, valid: jax.Array) -> jax.Array:
        """Returns the last layer's states float32 [B, L, D].

        Args:
          tokens: int32 [B, L].
          valid: bool [B, L], False for padding.
        """
        c = self.config
        x = nn.Embed(c.vocabulary, c.width, name="words")(tokens)
        places = position_rows(valid, c.first_position)
        x += nn.Embed(c.positions, c.width, name="positions")(places)
        x += nn.Embed(c.types, c.width, name="types")(jnp.zeros_like(tokens))
        x = Norm(c.norm_epsilon, name="embedding_norm")(x)
        bias = jnp.where(valid, 0.0, np.float32(_MASKED))[:, None, None]
        layers = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.layers,
        )
        return layers(c, name="layers")(x, bias)[0]


def parameter_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter by its path, the layers' with their leading axis."""
    token = jnp.ones((1, 1), jnp.int32)

    def start() -> Any:
        return Bert(config).init(jax.random.key(0), token, token > 0)["params"]

    flat = jax.tree_util.tree_flatten_with_path(jax.eval_shape(start))[0]
    return {"/".join(part.key for part in path): leaf.shape for path, leaf in flat}
