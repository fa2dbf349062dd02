"""TEM: A Transformer-based Embedding Model for Personalized Product Search (Bi et al., SIGIR 2020).

arXiv 2005.08936: a Transformer over the query, as QEM's, and the items last bought; the state of
the query scores items by dot product. Settings follow the released code, whose second loss, over
the words of the target's reviews, is left out: logs have no reviews. Bought are the items clicked
in recommendations and searches before the request. A request is encoded once, where the release
encodes it for each negative anew.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from core.settings import Count, CountOrNone, Positive, Rate
from core.settings import Settings as Checked
from lcrsr import losses
from lcrsr.baselines import product_search
from lcrsr.baselines.product_search import (
    PurchaseEncoder,
    QueryEncoder,
    SearchNetwork,
    SearchRanker,
)
from lcrsr.history_encoder import Dropout
from lcrsr.ranker import Batch, Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """Holds sizes, dropout and the loss.

    Attributes:
      width: D of the tables' rows and of the network.
      length: L, the items last bought.
      inner: width inside the feed-forward layers.
      loss: of `losses.LOSSES`.
    """

    width: Count
    length: Count
    layers: CountOrNone
    heads: Count
    inner: Count
    dropout: Rate
    init_scale: Positive
    loss: losses.OfVectors

    def check(self) -> None:
        self.check_divisible("width", by="heads")


class Network(SearchNetwork):
    """Encodes queries with the items bought before them."""

    def setup(self):
        s = self.settings
        self.query = QueryEncoder()
        self.encoder = PurchaseEncoder(s.layers, s.heads, s.inner)

    def encode(self, batch: Batch, rows: Rows, dropout: Dropout) -> jax.Array:
        query = self.query(rows["query"], jnp.not_equal(batch["query"], 0))
        items, valid = product_search.purchases(batch, rows, self.settings.length)
        return self.encoder(query, items, valid, dropout)


def search_ranker(settings: Settings) -> SearchRanker:
    return SearchRanker(Network(settings), settings)
