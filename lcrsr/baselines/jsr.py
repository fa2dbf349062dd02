"""JSR: Joint Modeling and Optimization of Search and Recommendation (Zamani and Croft, 2018).

DESIRES 2018, arXiv 1807.05631: a recommendation network and a retrieval network are trained
together by one loss, and share what they know of the items. No code was released, and we know the
paper's first page alone; what follows is our reading, with which UniSAR and GenSAR describe it: two
heads over one item table, y_rec = MLP_r(e_u * E_n) and y_src = MLP_s(q * E_n), where * multiplies
each dimension, q is the mean of the query's words under softmax weights, and
L = L_rec + search_weight L_src, each over a positive and its negatives.

Our choices: a word's weight is a learned linear map of its row, so that words of one meaning weigh
alike; search pairs are the training searches, as UniSAR's are. A user acts through a row of their
own and no history, so users not seen in training are all alike. The reconstruction of items' texts
of the 2020 model (WSDM 2020) is left out: batches hold no texts of items.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.settings import Count, Positive, Rate, SomeWidths, Weight
from core.settings import Settings as Checked
from lcrsr import losses
from lcrsr.attention import masked_softmax
from lcrsr.baselines import two_histories
from lcrsr.baselines.two_histories import QUIET, Tower, TwoTasksRanker, flat
from lcrsr.history_encoder import Dropout
from lcrsr.ranker import Batch, Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """Holds sizes and the weights of the losses.

    Attributes:
      width: D of the tables' rows and of the products.
      mlp_widths: hidden widths of each head.
      loss: of both tasks, over a target and its negatives.
      search_weight: of the search task's loss; 0 trains on recommendation alone.
    """

    width: Count
    mlp_widths: SomeWidths
    dropout: Rate
    init_scale: Positive
    loss: losses.OfPairs
    search_weight: Weight


class Encoded(NamedTuple):
    """Holds a batch's users [B, D] and the current queries [S, D] of its last rows."""

    user: jax.Array
    query: jax.Array


class Network(nn.Module):
    """Scores items for users and for queries by a head each."""

    settings: Settings

    def setup(self):
        widths = self.settings.mlp_widths
        self.importance = nn.Dense(1, use_bias=False)
        self.towers = [Tower(widths) for _ in range(2)]
        self.logits = [nn.Dense(1) for _ in range(2)]

    def encode(self, batch: Batch, rows: Rows, dropout: Dropout) -> Encoded:
        del dropout
        user = rows["user"]
        if "query" not in batch:
            return Encoded(user, user[:0])
        return Encoded(user, self.queries(rows["query"], jnp.not_equal(batch["query"], 0)))

    def queries(self, words: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps words [S, W, D] with mask bool [S, W] to [S, D]; zero without words."""
        weights = masked_softmax(flat(self.importance, words)[..., 0], mask)
        return jnp.einsum("bw,bwd->bd", weights, words)

    def recommend(self, users: Encoded, items: jax.Array, dropout: Dropout) -> jax.Array:
        """Logits [B, N] of items [B or 1, N, D]."""
        return self._head(0, users.user, items, dropout)

    def search(self, users: Encoded, items: jax.Array, dropout: Dropout) -> jax.Array:
        """Logits [S, N] of items [S or 1, N, D] for the current queries."""
        return self._head(1, users.query, items, dropout)

    def _head(self, task, vectors, items, dropout):
        hidden = self.towers[task](vectors[:, None] * items, dropout)
        return flat(self.logits[task], hidden)[..., 0]

    def losses(
        self, batch: Batch, rows: Rows, dropout: Dropout
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        users, first = self.encode(batch, rows, QUIET), two_histories.recommendations(batch)
        items, searched = rows["candidates"], None
        of_rec = users._replace(user=users.user[:first])
        recommended = self.recommend(of_rec, items[:first], dropout.at(0))
        if "query" in batch:
            searched = self.search(users, items[first:], dropout.at(1))
        s = self.settings
        return two_histories.loss_of_tasks(s.loss, recommended, searched, batch, s.search_weight)

    def every_parameter(self, batch: Batch, rows: Rows) -> None:
        """Calls every part once, the search task too, so that `init` makes all parameters."""
        words, mask = rows["query_words"][:, 0], batch["query_words"][:, 0] != 0
        users = Encoded(rows["user"], self.queries(words, mask))
        self.recommend(users, rows["candidates"], QUIET)
        self.search(users, rows["candidates"], QUIET)


class JSR(TwoTasksRanker):
    """Ranks recommendations and the items of searches: a `Ranker` that answers searches."""

    starts_users = True


def ranker(settings: Settings) -> JSR:
    return JSR(Network(settings), settings)
