"""QEM, the query-only model of A Zero Attention Model for Personalized Product Search.

Ai et al., CIKM 2019, arXiv 1908.11322: q = tanh(V mean_w E_w + v), y = q . I_n; nobody's history
has a part. Settings follow the released code, whose second loss, over the words of the target's
reviews, is left out: logs have no reviews.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from core.settings import Count, Positive, Rate
from core.settings import Settings as Checked
from lcrsr import losses
from lcrsr.baselines.product_search import QueryEncoder, SearchNetwork, SearchRanker
from lcrsr.history_encoder import Dropout
from lcrsr.ranker import Batch, Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """Holds D of the tables' rows, dropout of the queries, and the loss, of `losses.LOSSES`."""

    width: Count
    dropout: Rate
    init_scale: Positive
    loss: losses.OfVectors


class Network(SearchNetwork):
    """Encodes queries."""

    def setup(self):
        self.query = QueryEncoder()

    def encode(self, batch: Batch, rows: Rows, dropout: Dropout) -> jax.Array:
        return dropout(self.query(rows["query"], jnp.not_equal(batch["query"], 0)))


def search_ranker(settings: Settings) -> SearchRanker:
    return SearchRanker(Network(settings), settings)
