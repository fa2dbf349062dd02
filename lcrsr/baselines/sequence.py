"""Holds what sequential recommenders share: a Transformer over clicked items, and dot-product
scores.

A sequential baseline reads `rec_items` alone, represents a user as one vector [B, D] and scores an
item by its dot product with the item's row.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcrsr import losses
from lcrsr.ranker import Batch, Params, Rows, drawn_parameters
from lcrsr.views import Views, views_of


def visible(valid: jax.Array, views: Views | None, *, causal: bool) -> jax.Array:
    """Returns which rows each row attends to, bool [V, 1, L, L] (row, seen row).

    Args:
      valid: bool [V, L].
      views: of windows, which are causal; None where each target has a history of its own.
    """
    length = valid.shape[1]
    # A padded position sees itself, so that no row of the softmax is empty.
    mask = valid[:, None, None, :] | jnp.eye(length, dtype=bool)
    if views is not None:
        return mask & views.band()[:, None]
    return mask & jnp.tril(jnp.ones((length, length), bool)) if causal else mask


class Block(nn.Module):
    """Applies a pre-LN Transformer block: x + MHA(LN x), then x + FFN(LN x)."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, deterministic: bool) -> jax.Array:
        width = x.shape[-1]
        normal = nn.LayerNorm()(x)
        attended = nn.MultiHeadDotProductAttention(
            num_heads=self.heads, dropout_rate=self.dropout, deterministic=deterministic
        )(normal, normal, mask=mask)
        x = x + nn.Dropout(self.dropout, deterministic=deterministic)(attended)
        hidden = nn.relu(nn.Dense(width)(nn.LayerNorm()(x)))
        hidden = nn.Dropout(self.dropout, deterministic=deterministic)(hidden)
        hidden = nn.Dense(width)(hidden)
        return x + nn.Dropout(self.dropout, deterministic=deterministic)(hidden)


class Transformer(nn.Module):
    """Applies positions, blocks and a last layer norm to right-padded rows.

    Attributes:
      length: L at most.
      causal: whether a position sees only itself and earlier ones.
    """

    length: int
    layers: int
    heads: int
    dropout: float
    causal: bool

    @nn.compact
    def __call__(
        self,
        rows: jax.Array,
        valid: jax.Array,
        views: Views | None = None,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """Rows [V, L, D] with valid bool [V, L], of users or of windows, to states [V, L, D]."""
        _, length, width = rows.shape
        positions = self.param("positions", nn.initializers.normal(0.02), (self.length, width))
        places = slice(length) if views is None else views.places
        x = rows * width**0.5 + positions[places]
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
        mask = visible(valid, views, causal=self.causal)
        for _ in range(self.layers):
            x = Block(self.heads, self.dropout)(x, mask, deterministic)
        return nn.LayerNorm()(x)


class DotProduct:
    """Scores with one vector [B, D] a user: the scoring half of a `Ranker`.

    Attributes:
      kind: its loss, of `losses.LOSSES`.
    """

    tables: tuple[str, ...] = ("item",)
    tasks: tuple[str, ...] = ("recommendation",)
    dot_product = True
    kind: str
    needs_whole_tables: bool
    shares_negatives: bool

    def trains_by(self, loss: str) -> None:
        """Notes the loss, and what it asks of training."""
        self.kind = loss
        self.needs_whole_tables = loss == losses.FULL
        self.shares_negatives = loss == losses.SAMPLED

    def user_vectors(self, params: Params, users: jax.Array, rows: Rows) -> jax.Array:
        del params, rows
        return users.astype(jnp.float32)

    def score(self, params: Params, users: jax.Array, rows: Rows) -> jax.Array:
        del params
        return jnp.einsum("bd,bnd->bn", users, rows["candidates"]).astype(jnp.float32)

    def score_catalogue(
        self, params: Params, users: jax.Array, rows: Rows, items: jax.Array
    ) -> jax.Array:
        del params, rows
        return (users @ items.T).astype(jnp.float32)


class SequentialRanker(DotProduct):
    """Ranks with a network from (rows [V, L, D], valid [V, L], views) to users [B, D]: a `Ranker`.

    The views are those of windows, and None where each user has a history of its own.
    """

    trains_on_windows = True

    def __init__(self, network: nn.Module, *, width: int, init_scale: float, loss: str):
        self.network = network
        self.trains_by(loss)
        self.width, self.init_scale = width, init_scale

    def init(self, key: jax.Array, batch: Batch, rows: Rows) -> Params:
        return drawn_parameters(self.network, key, *self.history(batch, rows))

    def history(self, batch: Batch, rows: Rows) -> tuple[jax.Array, jax.Array, Views | None]:
        return rows["rec_items"], jnp.not_equal(batch["rec_items"], 0), views_of(batch, "rec")

    def loss(
        self, params: Params, batch: Batch, rows: Rows, tables: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        users: Any = self.network.apply(
            {"params": params},
            *self.history(batch, rows),
            deterministic=False,
            rngs={"dropout": key},
        )
        value = losses.of_vectors(self.kind, users, batch, rows, tables["item"])
        return value, {self.kind: value}

    def represent(self, params: Params, batch: Batch, rows: Rows) -> Any:
        return self.network.apply(
            {"params": params}, *self.history(batch, rows), deterministic=True
        )
