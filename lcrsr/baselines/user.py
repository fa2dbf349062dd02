"""USER: Unified Information Search and Recommendation on integrated behaviour (Yao et al., 2021).

CIKM 2021, arXiv 2109.15012; the release has the model without trainer or data. Clicks and searches
stand in one sequence; a search is its query and its clicked items, each pooled by how they match;
the intent is the query, or without one the user; it is refined by the events of the current
session, then by all, and an item is scored by the cosines of both intents with its row and with
the item as it is after it has seen the history.

  co-attention: M = tanh(Q W D^T), a_Q = softmax(row sums), a_D = softmax(column sums),
    event = Linear[sum a_Q Q; sum a_D D]
  intent_s = Session(Session([latest events; intent]))[last]
  intent_h = History([events; intent_s])[last], item_h = History([events; item])[last]
  y = w . [cos(intent_s, item), cos(intent_s, item_h), cos(intent_h, item), cos(intent_h, item_h)]

Where it departs from the release: its 122 features made by hand, which the data do not have, are
left out, and so is the tanh around y, which bounds the softmax loss from below (its place takes a
learned w that starts at 10 in all). Each candidate meets its own user's history, where the
release's lie in another order; W and the rows that tell kinds of events apart are trained. Our
choices: logs of all readers have no sessions, so the last `session` events are the current one and
past sessions have no pass of their own; encoders have one layer. As in the release there are no
positions and no causal mask: the order counts only by what the last `session` events are.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from core.settings import Count, Positive, Rate, Weight
from core.settings import Settings as Checked
from lcrsr import losses
from lcrsr.attention import masked_softmax
from lcrsr.baselines import two_histories
from lcrsr.baselines.two_histories import (
    QUIET,
    AdditiveAttention,
    EncoderLayer,
    FeedForward,
    TwoTasksRanker,
    flat,
)
from lcrsr.history_encoder import Dropout
from lcrsr.ranker import Batch, Rows

_NORM = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """Holds sizes and the weights of the losses.

    Attributes:
      width: D of the tables' rows and of the network.
      session: latest events that are the current session.
      loss: of both tasks, over a target and its negatives.
      search_weight: of the search task's loss; 0 trains on recommendation alone.
    """

    width: Count
    heads: Count
    session: Count
    dropout: Rate
    init_scale: Positive
    loss: losses.OfPairs
    search_weight: Weight

    def check(self) -> None:
        self.check_divisible("width", by="heads")


class Encoded(NamedTuple):
    """Holds a batch's users.

    Attributes:
      intents: [B, 2, D], refined by the current session, and by all events too.
      events: [B, L, D] in time order; mask: bool [B, L].
    """

    intents: jax.Array
    events: jax.Array
    mask: jax.Array


class CoAttention(nn.Module):
    """Pools a search's words and its clicked items by how well they match each other."""

    @nn.compact
    def __call__(
        self, words: jax.Array, clicked: jax.Array, word_mask: jax.Array, click_mask: jax.Array
    ) -> jax.Array:
        """Words [n, W, D] and clicked items [n, C, D], with masks, to events [n, D]."""
        width = words.shape[-1]
        kernel = self.param("kernel", nn.initializers.xavier_normal(), (width, width))
        matches = jnp.tanh(jnp.einsum("nwd,de,nce->nwc", words, kernel, clicked))
        matches = matches * (word_mask[:, :, None] & click_mask[:, None])
        of_words = masked_softmax(matches.sum(2), word_mask)
        of_clicks = masked_softmax(matches.sum(1), click_mask)
        pooled = [
            jnp.einsum("nw,nwd->nd", of_words, words),
            jnp.einsum("nc,ncd->nd", of_clicks, clicked),
        ]
        return nn.Dense(width)(jnp.concatenate(pooled, -1))


class HistoryLayer(nn.Module):
    """Applies a post-LN Transformer layer whose every query sees the events and itself."""

    heads: int

    @nn.compact
    def __call__(
        self, x: jax.Array, events: jax.Array, mask: jax.Array, dropout: Dropout
    ) -> jax.Array:
        """Maps x [B or 1, N, D] by events [B, L, D] with mask bool [B, L] to [B, N, D]."""
        width = x.shape[-1]
        inner = width // self.heads
        key, value = nn.Dense(width, name="key"), nn.Dense(width, name="value")

        def split(rows):
            return rows.reshape(*rows.shape[:2], self.heads, inner)

        q = split(flat(nn.Dense(width, name="query"), x)) * inner**-0.5
        of_events = jnp.einsum("bnhe,blhe->bhnl", *_together(q, split(flat(key, events))))
        own = jnp.moveaxis((q * split(flat(key, x))).sum(-1), 2, 1)[..., None]
        own = jnp.broadcast_to(own, (*of_events.shape[:3], 1))
        logits = jnp.concatenate([of_events, own], -1)
        seen = jnp.pad(mask, ((0, 0), (0, 1)), constant_values=True)
        weights = masked_softmax(logits, seen[:, None, None])
        mixed = jnp.einsum("bhnl,blhe->bnhe", weights[..., :-1], split(flat(value, events)))
        mixed += jnp.moveaxis(weights[..., -1], 1, 2)[..., None] * split(flat(value, x))
        attended = flat(nn.Dense(width, name="out"), mixed.reshape(*mixed.shape[:2], width))
        x = nn.LayerNorm()(x + dropout.at(0)(attended))
        return FeedForward()(x, dropout.at(1))


def _together(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Broadcasts the first axes of two arrays to each other."""
    # Not the larger one, for the number of users may be a symbol.
    count = b.shape[0] if a.shape[0] == 1 else a.shape[0]
    return (
        jnp.broadcast_to(a, (count, *a.shape[1:])),
        jnp.broadcast_to(b, (count, *b.shape[1:])),
    )


class Network(nn.Module):
    """Refines an intent by the session and the history, and matches items with it."""

    settings: Settings

    def setup(self):
        s = self.settings
        self.word_layer = EncoderLayer(s.heads)
        self.over_words = AdditiveAttention(s.width)
        self.co_attention = CoAttention()
        self.kinds = self.param("kinds", nn.initializers.normal(s.init_scale), (4, s.width))
        self.session = EncoderLayer(s.heads)
        self.history = HistoryLayer(s.heads)
        self.weights = self.param("weights", two_histories.constant(2.5), (4,))
        self.bias = self.param("bias", nn.initializers.zeros, ())

    def words(self, rows: jax.Array, mask: jax.Array, dropout: Dropout) -> jax.Array:
        """Maps words [n, W, D] with mask bool [n, W] to words that have seen their query's."""
        return self.word_layer(rows, rows, mask, dropout) * mask[..., None]

    def intent(self, batch: Batch, rows: Rows, dropout: Dropout) -> jax.Array:
        """Returns [B, D]: the user's row, or the current query of rows that have one with words."""
        click, search = self.kinds[2:]
        user = rows["user"] + click
        if "query" not in batch:
            return user
        first = two_histories.recommendations(batch)
        mask = jnp.not_equal(batch["query"], 0)
        query = self.over_words(self.words(rows["query"], mask, dropout), mask) + search
        query = jnp.where(mask.any(-1, keepdims=True), query, user[first:])
        return jnp.concatenate([user[:first], query])

    def events(self, batch: Batch, rows: Rows, dropout: Dropout) -> tuple[jax.Array, jax.Array]:
        """Returns the events of both histories in time order, [B, L, D], and which there are."""
        words, clicks = (jnp.not_equal(batch[n], 0) for n in ("query_words", "clicked_items"))
        b, searches, width = *words.shape[:2], self.settings.width

        def each(x):
            return x.reshape(b * searches, *x.shape[2:])

        of_words = self.words(each(rows["query_words"]), each(words), dropout)
        shown = rows["clicked_items"] * clicks[..., None]
        search = self.co_attention(of_words, each(shown), each(words), each(clicks))
        every = [
            rows["rec_items"] + self.kinds[0],
            search.reshape(b, searches, width) + self.kinds[1],
        ]
        rec = jnp.not_equal(batch["rec_items"], 0)
        valid = jnp.concatenate([rec, words.any(-1) | clicks.any(-1)], 1)
        places = jnp.concatenate([batch["rec_order"], batch["search_order"]], 1)
        chosen, valid = two_histories.latest(places, valid, valid.shape[1])
        events = jnp.take_along_axis(jnp.concatenate(every, 1), chosen[..., None], 1)
        return events * valid[..., None], valid

    def encode(self, batch: Batch, rows: Rows, dropout: Dropout) -> Encoded:
        events, mask = self.events(batch, rows, dropout.at(0))
        intent = self.intent(batch, rows, dropout.at(1))
        places = jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape)
        chosen, latest = two_histories.latest(places, mask, self.settings.session)
        session = jnp.take_along_axis(events, chosen[..., None], 1)
        x = jnp.concatenate([session, intent[:, None]], 1)
        seen = jnp.pad(latest, ((0, 0), (0, 1)), constant_values=True)
        for number in range(2):
            x = self.session(x, x, seen, dropout.at(2 + number))
        of_session = x[:, -1]
        of_history = self.history(of_session[:, None], events, mask, dropout.at(4))[:, 0]
        return Encoded(jnp.stack([of_session, of_history], 1), events, mask)

    def recommend(self, users: Encoded, items: jax.Array, dropout: Dropout) -> jax.Array:
        """Logits [B, N] of items [B or 1, N, D], for each user's intent."""
        after = self.history(items, users.events, users.mask, dropout)
        intents = _unit(users.intents)
        cosines = [
            jnp.einsum("bid,bnd->bni", *_together(intents, _unit(rows))) for rows in (items, after)
        ]
        # [intent_s, intent_h] with the item, then with the item after the history.
        return jnp.concatenate(cosines, -1) @ self.weights + self.bias

    def search(self, users: Encoded, items: jax.Array, dropout: Dropout) -> jax.Array:
        """Logits as `recommend`: the query is in the intents."""
        return self.recommend(users, items, dropout)

    def losses(
        self, batch: Batch, rows: Rows, dropout: Dropout
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        s, first = self.settings, two_histories.recommendations(batch)
        users = self.encode(batch, rows, dropout.at(0))
        logits = self.recommend(users, rows["candidates"], dropout.at(1))
        searched = logits[first:] if "query" in batch else None
        return two_histories.loss_of_tasks(s.loss, logits[:first], searched, batch, s.search_weight)

    def every_parameter(self, batch: Batch, rows: Rows) -> None:
        """Calls every part once, the search task too, so that `init` makes all parameters."""
        one = {"query": batch["query_words"][:, 0]}, {"query": rows["query_words"][:, 0]}
        users = self.encode(batch | one[0], rows | one[1], QUIET)
        self.recommend(users, rows["candidates"], QUIET)


def _unit(x: jax.Array) -> jax.Array:
    return x / optax.safe_norm(x, _NORM, axis=-1, keepdims=True)


def ranker(settings: Settings) -> TwoTasksRanker:
    return TwoTasksRanker(Network(settings), settings)
