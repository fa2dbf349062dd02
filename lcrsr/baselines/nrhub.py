"""NRHUB: Neural News Recommendation with Heterogeneous User Behavior (Wu et al., EMNLP 2019).

A user has several views, here searches, the items clicked in them, and the recommended items
clicked. Attention over the words of a query gives its vector, over the records of a view the
view's, over the views the user's; an item is scored by dot product. There is no order anywhere.

No code was released, and we know the paper's abstract alone: a record of words is
r = sum_w a_w c_w, c = relu(Conv(x)), a = softmax(q . tanh(V c + v)), likewise over records and over
views, each with weights of its own. The paper reads items as titles and its third view is of
webpages; here items are rows of a table, as are words. A view without events leaves the softmax
over views; a user without any event has a learned vector.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.settings import Count, Positive, Rate
from core.settings import Settings as Checked
from lcrsr import losses
from lcrsr.baselines.two_histories import QUIET, AdditiveAttention, VectorsRanker
from lcrsr.history_encoder import Dropout
from lcrsr.ranker import Batch, Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """Holds sizes, dropout and the loss.

    Attributes:
      width: D of the tables' rows and of every vector.
      attention_width: of the inner layer of each attention.
      kernel: words that the convolution sees at once.
      loss: of `losses.LOSSES`.
    """

    width: Count
    attention_width: Count
    kernel: Count
    dropout: Rate
    init_scale: Positive
    loss: losses.OfVectors


class Network(nn.Module):
    """Turns the three views of a user into one vector."""

    settings: Settings

    def setup(self):
        s = self.settings
        self.convolution = nn.Conv(s.width, (s.kernel,))
        self.over_words = AdditiveAttention(s.attention_width)
        self.over_queries, self.over_clicked, self.over_rec = (
            AdditiveAttention(s.attention_width) for _ in range(3)
        )
        self.over_views = AdditiveAttention(s.attention_width)
        self.nothing = self.param("nothing", nn.initializers.normal(s.init_scale), (s.width,))

    def queries(self, words: jax.Array, mask: jax.Array, dropout: Dropout) -> jax.Array:
        """Queries [B, Ls, D] from their words [B, Ls, W, D]; zero without words."""
        b, searches, count, width = words.shape
        shown = dropout.at(0)(words * mask[..., None]).reshape(b * searches, count, width)
        states = nn.relu(self.convolution(shown)).reshape(words.shape)
        return self.over_words(dropout.at(1)(states), mask)

    def views(self, batch: Batch, rows: Rows, dropout: Dropout) -> tuple[jax.Array, jax.Array]:
        """Returns a user's views [B, 3, D], and which have events, bool [B, 3]."""
        words = jnp.not_equal(batch["query_words"], 0)
        width = rows["clicked_items"].shape[-1]
        clicked = rows["clicked_items"].reshape(words.shape[0], -1, width)
        clicks = jnp.not_equal(batch["clicked_items"], 0).reshape(words.shape[0], -1)
        rec = jnp.not_equal(batch["rec_items"], 0)
        views = (
            self.over_queries(
                self.queries(rows["query_words"], words, dropout.at(0)), words.any(-1)
            ),
            self.over_clicked(dropout.at(1)(clicked), clicks),
            self.over_rec(dropout.at(2)(rows["rec_items"]), rec),
        )
        events = (words.any((1, 2)), clicks.any(1), rec.any(1))
        return jnp.stack(views, 1), jnp.stack(events, 1)

    def encode(self, batch: Batch, rows: Rows, dropout: Dropout) -> jax.Array:
        """Users [B, D]."""
        views, events = self.views(batch, rows, dropout)
        return jnp.where(
            events.any(-1, keepdims=True), self.over_views(views, events), self.nothing
        )

    def losses(
        self, batch: Batch, rows: Rows, items: jax.Array, dropout: Dropout
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        kind = self.settings.loss
        users = self.encode(batch, rows, dropout)
        value = losses.of_vectors(kind, users, batch, rows, items)
        return value, {kind: value}

    def every_parameter(self, batch: Batch, rows: Rows) -> None:
        """Calls every part once, so that `init` makes all parameters."""
        self.encode(batch, rows, QUIET)


class NRHUB(VectorsRanker):
    """Ranks recommendations without a row of the user's own: a `Ranker`."""

    tables = ("item", "word")


def ranker(settings: Settings) -> NRHUB:
    return NRHUB(Network(settings), settings)
