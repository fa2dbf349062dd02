"""UnifiedSSR: A Unified Framework of Sequential Search and Recommendation (Xie et al., WWW 2024).

arXiv 2310.13921, with the released code. One encoder serves both branches: self-attention,
cross-attention to the other branch's input, feed-forward. Recommendation is P = enc(p; p) over the
clicked items; search is P = enc(p; q) over the items clicked in searches and Q = enc(q; p) over
their queries, the last of which is the current one. y_rec = P_last . E, and
y_src = w P_last . E + (1 - w) Q_last . E with w learned between .1 and .9. Inputs and scores take E
times sqrt(D); inputs add the user's row and sinusoids. Sessions are windows of a history; the
correlation loss draws neighbouring windows' means apart and those of P and Q together.

Where it departs from the release: attention is causal, where the release lets every position see
the item that it must predict; each layer reads the one before it, where the release's all read the
first input, so that the last alone counts; one stage trains both tasks, and no second one tunes to
one of them. In the release no gradient reaches what predicts the windows, which stay where they
begin, so they are fixed here; positions in windows are not doubled. Our choices: a history begins
with a row without an item, so that none is empty; an item of a search is its first click; states
have a last layer norm.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from core.settings import Count, CountOrNone, Positive, Rate, Weight
from core.settings import Settings as Checked
from lcrsr import losses
from lcrsr.attention import last_valid
from lcrsr.baselines import two_histories
from lcrsr.baselines.two_histories import QUIET, Attention, TwoTasksRanker, VectorsRanker, flat
from lcrsr.history_encoder import Dropout
from lcrsr.ranker import Batch, Params, Rows

# Between which w is kept.
_LEAST, _MOST = 0.1, 0.9
_NORM = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """Holds sizes and the weights of the losses.

    Attributes:
      width: D of the tables' rows and of the network.
      inner: width inside the feed-forward layers.
      sessions: S, windows of a history.
      init_scale, user_scale: standard deviations at the start of the rows of items and words, and
        of users' rows.
      correlation_weight: of the correlation loss.
      loss: of both tasks, of `losses.LOSSES`.
      search_weight: of the search task's losses; 0 trains on recommendation alone.
    """

    width: Count
    inner: Count
    layers: CountOrNone
    heads: Count
    sessions: Count
    dropout: Rate
    init_scale: Positive
    user_scale: Positive
    correlation_weight: Weight
    loss: losses.OfVectors
    search_weight: Weight

    def check(self) -> None:
        self.check_divisible("width", by="heads")


def windows(counts: jax.Array, length: int, sessions: int) -> jax.Array:
    """Returns which positions each session's window holds, bool [B, S, L].

    They lie at (s + .5) / S of a history, a quarter of n / S to either side.

    Args:
      counts: n, int32 [B], how many of the `length` rows are a user's.
    """
    share = counts[:, None, None] / sessions
    centre = (jnp.arange(sessions)[:, None] + 0.5) * share
    place = jnp.arange(length)
    inside = jnp.abs(place - centre) <= 0.25 * share
    return inside & (place < counts[:, None, None])


def window_means(rows: jax.Array, inside: jax.Array) -> jax.Array:
    """Returns each window's mean [B, S, D] of rows [B, L, D]; zero of one without rows."""
    count = jnp.maximum(inside.sum(-1, keepdims=True), 1)
    return jnp.einsum("bsl,bld->bsd", inside.astype(rows.dtype), rows) / count


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    return optax.cosine_similarity(a, b, epsilon=_NORM)


def correlation(items: jax.Array, queries: jax.Array | None) -> jax.Array:
    """Returns each user's correlation loss [B], from windows' means [B, S, D] of P, and of Q.

    It is |cos| of neighbouring windows, averaged, of P and of Q, less the mean cosine of a window's
    two means.
    """

    def neighbours(means):
        close = jnp.abs(_cosine(means[:, 1:], means[:, :-1]))
        return close.sum(-1) / max(close.shape[-1], 1)

    if queries is None:
        return neighbours(items)
    return neighbours(items) + neighbours(queries) - _cosine(items, queries).mean(-1)


def sinusoids(length: int, width: int) -> np.ndarray:
    """Returns the positions [L, D] of Vaswani et al. (2017), sines then cosines."""
    half = (width + 1) // 2
    angles = np.arange(length)[:, None] * 1e4 ** (-np.arange(half) / half)
    return np.concatenate([np.sin(angles), np.cos(angles)], 1)[:, :width].astype(np.float32)


class Layer(nn.Module):
    """Applies pre-LN self-attention, cross-attention and a feed-forward layer, with residuals."""

    heads: int
    inner: int

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        other: jax.Array,
        mask: jax.Array,
        dropout: Dropout,
    ) -> jax.Array:
        """Maps x [B, L, D] with mask bool [B, L, L]; row l of x sees rows of `other` up to l."""
        width = x.shape[-1]
        normal = nn.LayerNorm()(x)
        x = x + dropout.at(0)(Attention(self.heads)(normal, normal, mask))
        x = x + dropout.at(1)(Attention(self.heads)(nn.LayerNorm()(x), other, mask))
        hidden = nn.relu(flat(nn.Dense(self.inner), nn.LayerNorm()(x)))
        return x + dropout.at(3)(flat(nn.Dense(width), dropout.at(2)(hidden)))


class Network(nn.Module):
    """Turns histories into users' vectors [B, D], by the branch of the task."""

    settings: Settings

    def setup(self):
        s = self.settings
        self.layers = [Layer(s.heads, s.inner) for _ in range(s.layers)]
        self.norm = nn.LayerNorm()
        self.share = self.param("share", two_histories.constant(0.5), ())

    def branch(
        self, x: jax.Array, other: jax.Array, valid: jax.Array, dropout: Dropout
    ) -> jax.Array:
        """Encodes rows x [B, L, D] beside the other branch's inputs; valid bool [B, L]."""
        length = x.shape[1]
        causal = jnp.tril(jnp.ones((length, length), bool))
        mask = causal & (valid[:, None] | jnp.eye(length, dtype=bool))
        for number, layer in enumerate(self.layers):
            x = layer(x, other, mask, dropout.at(number))
        return self.norm(x)

    def inputs(self, rows: jax.Array, user: jax.Array) -> jax.Array:
        """Adds the user and positions to rows [B, L, D]."""
        _, length, width = rows.shape
        scale = width**0.5
        return scale * (rows + user[:, None]) + sinusoids(length, width)

    def recommendations(
        self, batch: Batch, rows: Rows, dropout: Dropout
    ) -> tuple[jax.Array, jax.Array]:
        """Returns users [B, D] for their next item, and their correlation losses [B]."""
        real = jnp.not_equal(batch["rec_items"], 0)
        valid = jnp.pad(real, ((0, 0), (1, 0)), constant_values=True)
        items = jnp.pad(rows["rec_items"] * real[..., None], ((0, 0), (1, 0), (0, 0)))
        p = dropout.at(0)(self.inputs(items, rows["user"]))
        states = self.branch(p, p, valid, dropout.at(1))
        inside = self._windows(valid)
        return last_valid(states, valid), correlation(window_means(states, inside), None)

    def searches(
        self, batch: Batch, rows: Rows, words: jax.Array, mask: jax.Array, dropout: Dropout
    ) -> tuple[jax.Array, jax.Array]:
        """Returns users [B, D] for their current queries, and their correlation losses [B].

        Args:
          words, mask: of the current queries, [B, W, D] and bool [B, W].
        """
        worded = jnp.not_equal(batch["query_words"], 0)
        clicked = jnp.not_equal(batch["clicked_items"][..., 0], 0)
        past = worded.any(-1) | jnp.not_equal(batch["clicked_items"], 0).any(-1)
        places = jnp.arange(past.shape[1] + 1)
        end = jnp.where(past, places[1:], 0).max(1)[:, None]
        now = places == end
        queries = jnp.pad(_mean(rows["query_words"], worded), ((0, 0), (0, 1), (0, 0)))
        queries = jnp.where(now[..., None], _mean(words, mask)[:, None], queries)
        first = rows["clicked_items"][:, :, 0] * clicked[..., None]
        # An item stands beside the query after it.
        items = jnp.pad(first, ((0, 0), (1, 0), (0, 0)))
        valid = jnp.pad(past, ((0, 0), (0, 1))) | now
        p = dropout.at(0)(self.inputs(items, rows["user"]))
        q = dropout.at(1)(self.inputs(queries, rows["user"]))
        of_items = self.branch(p, q, valid, dropout.at(2))
        of_queries = self.branch(q, p, valid, dropout.at(3))
        share = jnp.clip(self.share, _LEAST, _MOST)
        mixed = share * of_items + (1 - share) * of_queries
        inside = self._windows(valid)
        means = [window_means(states, inside) for states in (of_items, of_queries)]
        return last_valid(mixed, valid), correlation(*means)

    def _windows(self, valid):
        ends = jnp.where(valid, jnp.arange(1, valid.shape[1] + 1), 0).max(1)
        return windows(ends, valid.shape[1], self.settings.sessions) & valid[:, None]

    def encode(self, batch: Batch, rows: Rows, dropout: Dropout) -> jax.Array:
        """Users [B, D], of the last rows for their current queries."""
        return self._encoded(batch, rows, dropout)[0]

    def _encoded(self, batch, rows, dropout):
        first = two_histories.recommendations(batch)
        words, mask = rows.get("query"), jnp.not_equal(batch.get("query", 0), 0)

        def part(fields, rows_of):
            return {n: x[rows_of] for n, x in fields.items() if n != "query"}

        parts = []
        if first:
            of = slice(0, None if words is None else first)
            parts.append(self.recommendations(part(batch, of), part(rows, of), dropout.at(0)))
        if words is not None:
            of = slice(first, None)
            last = part(batch, of), part(rows, of)
            parts.append(self.searches(*last, words, mask, dropout.at(1)))
        users, losses_of = (jnp.concatenate(x) for x in zip(*parts, strict=True))
        return users * self.settings.width**0.5, losses_of

    def losses(
        self, batch: Batch, rows: Rows, items: jax.Array, dropout: Dropout
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        s, first = self.settings, two_histories.recommendations(batch)
        users, apart = self._encoded(batch, rows, dropout)
        click, stats = two_histories.vectors_loss_of_tasks(
            s.loss, users, batch, rows, items, s.search_weight
        )

        def mean(part):
            mask = batch["mask"][part]
            return (apart[part] * mask).sum() / jnp.maximum(mask.sum(), 1)

        apart_loss = mean(slice(0, first))
        if "query" in batch:
            apart_loss += s.search_weight * mean(slice(first, None))
        return click + s.correlation_weight * apart_loss, stats | {"correlation": apart_loss}

    def every_parameter(self, batch: Batch, rows: Rows) -> None:
        """Calls the search branch, which has every parameter."""
        words, mask = rows["query_words"][:, 0], batch["query_words"][:, 0] != 0
        self.searches(batch, rows, words, mask, QUIET)


def _mean(words: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the mean of words [..., W, D] that there are; zero without any."""
    return (words * mask[..., None]).sum(-2) / jnp.maximum(mask.sum(-1, keepdims=True), 1)


class UnifiedSSR(VectorsRanker, TwoTasksRanker):
    """Ranks recommendations and the items of searches: a `Ranker` that answers searches."""

    tables = ("user", "item", "word")

    def __init__(self, network: nn.Module, settings: Settings):
        super().__init__(network, settings)
        self.user_scale = settings.user_scale

    def score_query(
        self, params: Params, users: jax.Array, rows: Rows, items: jax.Array, query: jax.Array
    ) -> jax.Array:
        """Logits [B, V] of items [V, D]; `users` hold the queries."""
        del query
        return self.score_catalogue(params, users, rows, items)


def ranker(settings: Settings) -> UnifiedSSR:
    return UnifiedSSR(Network(settings), settings)
