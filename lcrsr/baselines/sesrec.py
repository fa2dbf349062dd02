"""SESRec: When Search Meets Recommendation (Si et al., SIGIR 2023, arXiv 2305.10822), section 4.

Both histories are encoded apart; a co-attention between them splits each into what is similar to
the other and what is not, held apart by a triplet loss; a candidate is scored from what it sees in
all of each history, in its similar and in its dissimilar part. Sizes and weights follow the
released code.

Where it departs from that code: padding has no part in the co-attention's affinities, the triplet
loss leaves out users one of whose histories is empty, queries have no source, and negatives of the
query-item loss come from the batch (`two_histories.clicked_pairs`).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.settings import Count, CountOrNone, Positive, Rate, SomeWidths, Weight
from core.settings import Settings as Checked
from lcrsr import losses
from lcrsr.attention import masked_softmax
from lcrsr.baselines import two_histories
from lcrsr.baselines.two_histories import QUIET, HistoryEncoder, Inputs, TwoHistoriesRanker
from lcrsr.history_encoder import Dropout
from lcrsr.ranker import Batch, Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """Holds sizes, and the weights of the losses.

    Attributes:
      width: T of the tables' rows.
      hidden: D of the network.
      mlp_widths: hidden widths of the prediction.
      loss: over a target and its negatives.
      alignment_weight, alignment_temperature: of the query-item loss.
      alignment_pairs: pairs of a query and a clicked item that it takes from a batch, at most.
      triplet_weight, margin: of the triplet loss, in Euclidean distance.
    """

    width: Count
    hidden: Count
    layers: CountOrNone
    heads: Count
    dropout: Rate
    init_scale: Positive
    loss: losses.OfPairs = "bce"
    mlp_widths: SomeWidths
    alignment_weight: Weight
    alignment_temperature: Positive
    alignment_pairs: Count
    triplet_weight: Weight
    margin: Weight
    rec_length: int
    search_length: int

    def check(self) -> None:
        self.check_divisible("hidden", by="heads")


class Parts(NamedTuple):
    """Holds one encoded history and its parts.

    Attributes:
      rows: [B, L, D].
      mask: bool [B, L], events.
      weights: [B, L], the co-attention's softmax over events.
      similar, dissimilar: bool [B, L]; all events where the split leaves a part empty.
    """

    rows: jax.Array
    mask: jax.Array
    weights: jax.Array
    similar: jax.Array
    dissimilar: jax.Array


class Encoded(NamedTuple):
    """Holds a batch's users."""

    inputs: Inputs
    rec: Parts
    search: Parts


def split(weights: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tells similar from dissimilar events, bool [B, L]: weights of at least 1/n, and below.

    Args:
      weights: [B, L], summing to 1 over the n events of a user.
      mask: bool [B, L], events; a part without any becomes all of them.
    """
    gate = 1.0 / jnp.maximum(mask.sum(-1, keepdims=True), 1)
    parts = mask & (weights >= gate), mask & (weights < gate)
    similar, dissimilar = (jnp.where(part.any(-1, keepdims=True), part, mask) for part in parts)
    return similar, dissimilar


def triplet(parts: Parts, margin: float) -> jax.Array:
    """Returns max(d(a, s) - d(a, t) + margin, 0), [B]: anchor a, means s and t of both parts."""

    def mean(mask):
        return (parts.rows * mask[..., None]).sum(1) / jnp.maximum(mask.sum(-1), 1)[:, None]

    anchor = jnp.einsum("bl,bld->bd", parts.weights, parts.rows)
    near = losses.distance(anchor, mean(parts.similar), "euclidean")
    far = losses.distance(anchor, mean(parts.dissimilar), "euclidean")
    return jnp.maximum(near - far + margin, 0.0)


class CoAttention(nn.Module):
    """Weighs each event by its affinities tanh(x_i^T W y_j) to the other history."""

    @nn.compact
    def __call__(
        self, rec: jax.Array, search: jax.Array, rec_mask: jax.Array, search_mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Rows [B, L, D] and masks of both to weights [B, Lr] and [B, Ls]."""
        width = rec.shape[-1]
        xavier, normal = nn.initializers.xavier_normal(), nn.initializers.normal(0.1)
        kernel = self.param("kernel", xavier, (width, width))
        of_rec = rec @ self.param("rec", normal, (width,)) * rec_mask
        of_search = search @ self.param("search", normal, (width,)) * search_mask
        affinity = jnp.tanh(jnp.einsum("bid,de,bje->bij", rec, kernel, search))
        return (
            masked_softmax(jnp.einsum("bij,bj->bi", affinity, of_search), rec_mask),
            masked_softmax(jnp.einsum("bij,bi->bj", affinity, of_rec), search_mask),
        )


class Network(nn.Module):
    """Encodes both histories, splits them and predicts."""

    settings: Settings

    def setup(self):
        s = self.settings
        self.features = two_histories.Features(s.hidden)
        self.encode_rec, self.encode_search = (
            HistoryEncoder(length, s.layers, s.heads) for length in (s.rec_length, s.search_length)
        )
        self.co_attention = CoAttention()
        self.pool_rec, self.pool_search = (two_histories.TargetAttention() for _ in range(2))
        self.first = two_histories.PartwiseDense(s.mlp_widths[0])
        self.tower = two_histories.Tower(s.mlp_widths[1:])
        self.logit = nn.Dense(1)
        self.query_item = two_histories.QueryItemAlignment(s.alignment_temperature)

    def encode(self, batch: Batch, rows: Rows, dropout: Dropout) -> Encoded:
        inputs = self.features(batch, rows)
        rec = self.encode_rec(inputs.rec, inputs.rec_mask, dropout.at(0))
        search = self.encode_search(inputs.searches(), inputs.search_mask, dropout.at(1))
        masks = inputs.rec_mask, inputs.search_mask
        weights = self.co_attention(rec, search, *masks)
        sides = zip((rec, search), masks, weights, strict=True)
        parts = [Parts(x, mask, weight, *split(weight, mask)) for x, mask, weight in sides]
        return Encoded(inputs, *parts)

    def recommend(self, users: Encoded, items: jax.Array, dropout: Dropout) -> jax.Array:
        """Logits [B, N] of items [B or 1, N, T]."""
        items = self.features.items(items)
        pooled: list[jax.Array] = []
        for pool, part in ((self.pool_rec, users.rec), (self.pool_search, users.search)):
            pooled += pool(part.rows, (part.mask, part.similar, part.dissimilar), items)
        hidden = nn.relu(self.first(jnp.concatenate(pooled, -1), items, users.inputs.user))
        return self.logit(self.tower(dropout.at(0)(hidden), dropout.at(1)))[..., 0]

    def losses(
        self, batch: Batch, rows: Rows, dropout: Dropout
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        s = self.settings
        users = self.encode(batch, rows, dropout.at(0))
        logits = self.recommend(users, rows["candidates"], dropout.at(1))
        click = losses.RECOMMENDATION[s.loss](logits, batch["labels"], batch["mask"])
        negative_items = self.features.items(rows["candidates"][:, 1])
        pairs = two_histories.clicked_pairs(users.inputs, negative_items, batch, s.alignment_pairs)
        alignment = self.query_item(pairs)
        counts = users.rec.mask.any(-1) & users.search.mask.any(-1) & (batch["mask"] > 0)
        each = triplet(users.rec, s.margin) + triplet(users.search, s.margin)
        apart = (each * counts).sum() / jnp.maximum(counts.sum(), 1)
        total = click + s.alignment_weight * alignment + s.triplet_weight * apart
        return total, {s.loss: click, "alignment": alignment, "triplet": apart}

    def every_parameter(self, batch: Batch, rows: Rows) -> None:
        """Calls every part once, so that `init` makes all parameters."""
        self.losses(batch, rows, QUIET)


def ranker(settings: Settings) -> TwoHistoriesRanker:
    return TwoHistoriesRanker(Network(settings), settings)
