"""Holds what models of personalised product search share: queries, purchases, dot-product scores.

They answer searches alone and train on them alone: each row of a batch has a `query`. Axes: B
batch, L history, W words, D width.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lcrsr import losses
from lcrsr.baselines import two_histories
from lcrsr.baselines.two_histories import QUIET, Attention, VectorsRanker, flat
from lcrsr.history_encoder import Dropout
from lcrsr.ranker import Batch, Params, Rows


class QueryEncoder(nn.Module):
    """Maps words [B, W, D] with mask bool [B, W] to tanh(V mean + v), [B, D]: tanh(v) without."""

    @nn.compact
    def __call__(self, words: jax.Array, mask: jax.Array) -> jax.Array:
        mean = (words * mask[..., None]).sum(1) / jnp.maximum(mask.sum(1, keepdims=True), 1)
        return jnp.tanh(nn.Dense(words.shape[-1])(mean))


def purchases(batch: Batch, rows: Rows, length: int) -> tuple[jax.Array, jax.Array]:
    """Returns the last `length` items that users clicked anywhere, [B, L, D], and which there are.

    Those of recommendations and those of searches stand in one history, oldest first.
    """
    clicked = batch["clicked_items"]
    b, searches, clicks = clicked.shape
    places = jnp.broadcast_to(batch["search_order"][..., None], clicked.shape)
    width = rows["rec_items"].shape[-1]
    every = jnp.concatenate(
        [rows["rec_items"], rows["clicked_items"].reshape(b, searches * clicks, width)], 1
    )
    items = jnp.concatenate([batch["rec_items"], clicked.reshape(b, -1)], 1)
    places = jnp.concatenate([batch["rec_order"], places.reshape(b, -1)], 1)
    chosen, valid = two_histories.latest(places, items != 0, length)
    return jnp.take_along_axis(every, chosen[..., None], 1) * valid[..., None], valid


def sinusoids(length: int, width: int) -> np.ndarray:
    """Returns the positions [L, D] of Vaswani et al. (2017), sines and cosines in turn."""
    half = (width + 1) // 2
    angles = np.arange(length)[:, None] * 1e4 ** (-np.arange(half) / half)
    both = np.stack([np.sin(angles), np.cos(angles)], -1)
    return both.reshape(length, -1)[:, :width].astype(np.float32)


class PurchaseEncoder(nn.Module):
    """Applies a pre-LN Transformer over a query and the items after it; the query's state counts.

    It is not causal; the first layer has no layer norm before its attention.
    """

    layers: int
    heads: int
    inner: int

    @nn.compact
    def __call__(
        self, query: jax.Array, items: jax.Array, valid: jax.Array, dropout: Dropout
    ) -> jax.Array:
        """Maps queries [B, D] and items [B, L, D] with valid bool [B, L] to [B, D]."""
        x = jnp.concatenate([query[:, None], items], 1)
        _, length, width = x.shape
        x = dropout.at(0)(x + sinusoids(length, width))
        mask = jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)
        for number in range(self.layers):
            drop = dropout.at(number + 1)
            normal = nn.LayerNorm()(x) if number else x
            x = x + drop.at(0)(Attention(self.heads)(normal, normal, mask))
            hidden = nn.relu(flat(nn.Dense(self.inner), nn.LayerNorm()(x)))
            x = x + drop.at(2)(flat(nn.Dense(width), drop.at(1)(hidden)))
        return nn.LayerNorm()(x)[:, 0]


class SearchRanker(VectorsRanker):
    """Ranks the items of searches alone, for a network from batches with queries to [B, D].

    Args:
      network: with `encode(batch, rows, dropout)`, and `losses` and `every_parameter` of
        `VectorsRanker`.
    """

    tables = ("item", "word")
    tasks = ("search",)

    def score_query(
        self, params: Params, users: jax.Array, rows: Rows, items: jax.Array, query: jax.Array
    ) -> jax.Array:
        """Logits [B, V] of items [V, D]; `users` hold the queries."""
        del query
        return self.score_catalogue(params, users, rows, items)


class SearchNetwork(nn.Module):
    """Holds the loss of a network whose `encode` gives vectors [B, D] for queries."""

    settings: Any

    def encode(self, batch: Batch, rows: Rows, dropout: Dropout) -> jax.Array:
        raise NotImplementedError

    def losses(
        self, batch: Batch, rows: Rows, items: jax.Array, dropout: Dropout
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        kind = self.settings.loss
        users = self.encode(batch, rows, dropout)
        value = losses.of_vectors(kind, users, batch, rows, items)
        return value, {kind: value}

    def every_parameter(self, batch: Batch, rows: Rows) -> None:
        """Calls every part once, so that `init` makes all parameters."""
        one = {"query": batch["query_words"][:, 0]}, {"query": rows["query_words"][:, 0]}
        self.encode(batch | one[0], rows | one[1], QUIET)
