"""Query-SeqRec: Query-Aware Sequential Recommendation (He et al., CIKM 2022).

Queries and items stand in one sequence in time order, a token being an item's row or the mean of a
query's words; a causal Transformer predicts the next token wherever that is an item. Sizes and the
block follow the released code, whose attention reads LN(X) as queries and X as keys and values, has
no residual around it, and adds the feed-forward layer's residual twice.

Our choices: a search is [query, click_1, ..., click_C] at its place of the merged history, without
the query where it has no words; a user without any event has a learned vector. In training the
released code replaces tokens by others of the same query or item, or by any; here by any alone: an
item by a negative of the batch, a query by another of the batch's queries.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.settings import Count, CountOrNone, Positive, Rate, Share
from core.settings import Settings as Checked
from lcrsr import losses
from lcrsr.attention import last_valid
from lcrsr.baselines import two_histories
from lcrsr.baselines.two_histories import QUIET, Attention, VectorsRanker, flat
from lcrsr.history_encoder import Dropout
from lcrsr.ranker import Batch, Params, Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """Holds sizes, dropout, the loss, and how much the training's inputs are changed.

    Attributes:
      width: D of the tables' rows and of the states.
      length: L, the latest tokens of a sequence that are kept.
      replaced_items, replaced_queries: shares of tokens replaced in training.
      loss: of `losses.LOSSES`, at every position whose next token is an item.
    """

    width: Count
    length: Count
    layers: CountOrNone
    heads: Count
    dropout: Rate
    init_scale: Positive
    replaced_items: Share
    replaced_queries: Share
    loss: losses.OfVectors

    def check(self) -> None:
        self.check_divisible("width", by="heads")


class Tokens(NamedTuple):
    """Holds one sequence a user, right-padded.

    Attributes:
      rows: [B, L, D].
      items: int32 [B, L], the item that a token is, 0 of queries and padding.
      queries, valid: bool [B, L], tokens that are queries, and tokens.
    """

    rows: jax.Array
    items: jax.Array
    queries: jax.Array
    valid: jax.Array


def tokens_of(batch: Batch, rows: Rows, length: int) -> Tokens:
    """Returns the last `length` queries and items of both histories, in time order."""
    clicked, words = batch["clicked_items"], jnp.not_equal(batch["query_words"], 0)
    b, searches, clicks = clicked.shape
    of_search = clicks + 1
    count = jnp.maximum(words.sum(-1, keepdims=True), 1)
    query = (rows["query_words"] * words[..., None]).sum(2) / count
    # The tokens of an event follow each other: a search's query, then its clicks.
    inner = jnp.concatenate([query[:, :, None], rows["clicked_items"]], 2)
    ids = jnp.concatenate([jnp.zeros((b, searches, 1), jnp.int32), clicked], 2)
    known = jnp.concatenate([words.any(-1)[..., None], clicked != 0], 2)
    places = batch["search_order"][..., None] * of_search + jnp.arange(of_search)
    several = b, searches * of_search
    every, items, valid, places = (
        jnp.concatenate([first, second.reshape(*several, *first.shape[2:])], 1)
        for first, second in (
            (rows["rec_items"], inner),
            (batch["rec_items"], ids),
            (batch["rec_items"] != 0, known),
            (batch["rec_order"] * of_search, places),
        )
    )
    chosen, valid = two_histories.latest(places, valid, length)
    items = jnp.take_along_axis(items, chosen, 1) * valid
    every = jnp.take_along_axis(every, chosen[..., None], 1) * valid[..., None]
    return Tokens(every, items, valid & (items == 0), valid)


def next_items(
    tokens: Tokens, target: jax.Array, target_rows: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the items after each token, and their rows: int32 [B, L] and [B, L, D].

    The id is 0 where no item follows, at positions that cost nothing. The target follows the last
    token, or the first position of a user without tokens.

    Args:
      target: int32 [B]; target_rows: [B, D].
    """
    places = jnp.arange(tokens.valid.shape[1])
    last = places == jnp.where(tokens.valid, places, 0).max(1)[:, None]
    after = jnp.pad(tokens.items[:, 1:], ((0, 0), (0, 1)))
    rows_after = jnp.pad(tokens.rows[:, 1:], ((0, 0), (0, 1), (0, 0)))
    return (
        jnp.where(last, target[:, None], after),
        jnp.where(last[..., None], target_rows[:, None], rows_after),
    )


def replaced(
    tokens: Tokens, negatives: jax.Array, items: float, queries: float, key: jax.Array
) -> Tokens:
    """Replaces shares of the items and queries by others of the batch; ids stay as they were.

    Args:
      negatives: [n, D], rows of random items.
      items, queries: the shares.
    """
    keys = jax.random.split(key, 4)
    shape = tokens.items.shape
    other_items = negatives[jax.random.randint(keys[0], shape, 0, len(negatives))]
    every = tokens.queries.ravel()
    (places,) = jnp.nonzero(every, size=len(every), fill_value=0)
    chosen = jax.random.randint(keys[1], shape, 0, jnp.maximum(every.sum(), 1))
    other_queries = tokens.rows.reshape(len(every), -1)[places[chosen]]
    are_items = tokens.valid & ~tokens.queries
    rows = tokens.rows
    for there, share, others, own in (
        (are_items, items, other_items, keys[2]),
        (tokens.queries, queries, other_queries, keys[3]),
    ):
        gone = there & jax.random.bernoulli(own, share, shape)
        rows = jnp.where(gone[..., None], others, rows)
    return tokens._replace(rows=rows)


class Block(nn.Module):
    """Applies the released block: attention without a residual, then the feed-forward layer."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, dropout: Dropout) -> jax.Array:
        width = x.shape[-1]
        attended = Attention(self.heads)(nn.LayerNorm()(x), x, mask)
        x = nn.LayerNorm()(attended)
        hidden = dropout.at(0)(nn.relu(flat(nn.Dense(width), x)))
        return x + x + dropout.at(1)(flat(nn.Dense(width), hidden))


class Network(nn.Module):
    """Turns sequences of tokens into states [B, L, D]."""

    settings: Settings

    @nn.compact
    def __call__(self, tokens: Tokens, dropout: Dropout) -> jax.Array:
        """Returns the states; the first of a user without tokens is a learned vector."""
        s = self.settings
        normal = nn.initializers.normal(s.init_scale)
        nothing = self.param("nothing", normal, (s.width,))
        positions = self.param("positions", normal, (s.length, s.width))
        kinds = self.param("kinds", normal, (2, s.width))
        length = tokens.rows.shape[1]
        x = tokens.rows + positions[:length] + kinds[tokens.queries.astype(jnp.int32)]
        x = dropout.at(0)(x)
        # Padding sees itself, so that no row of the softmax is empty.
        causal = jnp.tril(jnp.ones((length, length), bool))
        mask = causal & (tokens.valid[:, None] | jnp.eye(length, dtype=bool))
        for number in range(s.layers):
            x = Block(s.heads)(x, mask, dropout.at(number + 1))
        alone = ~tokens.valid.any(-1, keepdims=True) & (jnp.arange(length) == 0)
        return jnp.where(alone[..., None], nothing, nn.LayerNorm()(x))


class QuerySeqRec(VectorsRanker):
    """Ranks by the state of the last token: a `Ranker`."""

    tables = ("item", "word")

    def __init__(self, settings: Settings):
        super().__init__(Network(settings), settings)

    def init(self, key: jax.Array, batch: Batch, rows: Rows) -> Params:
        def drawn(key, batch, rows):
            tokens = tokens_of(batch, rows, self.settings.length)
            return self.network.init({"params": key}, tokens, QUIET)["params"]

        return jax.jit(drawn)(key, batch, rows)

    def loss(
        self, params: Params, batch: Batch, rows: Rows, tables: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        s, candidates = self.settings, rows["candidates"]
        drop_key, key = jax.random.split(key)
        tokens = tokens_of(batch, rows, s.length)
        targets = losses.any_target(batch["candidates"], batch["mask"])
        following, own = next_items(tokens, targets, candidates[:, 0])
        negatives, inputs = candidates[:, 1:], tokens
        if negatives.shape[1] and (s.replaced_items or s.replaced_queries):
            of_batch = negatives.reshape(-1, s.width)
            inputs = replaced(tokens, of_batch, s.replaced_items, s.replaced_queries, key)
        states = self._states(params, inputs, Dropout(drop_key, s.dropout))
        counts = (following != 0) * batch["mask"][:, None]
        value = losses.of_states(
            s.loss, states, following, own, counts, batch, rows, tables["item"]
        )
        return value, {s.loss: value}

    def _states(self, params: Params, tokens: Tokens, dropout: Dropout) -> Any:
        return self.network.apply({"params": params}, tokens, dropout)

    def represent(self, params: Params, batch: Batch, rows: Rows) -> jax.Array:
        tokens = tokens_of(batch, rows, self.settings.length)
        return last_valid(self._states(params, tokens, QUIET), tokens.valid)


def ranker(settings: Settings) -> QuerySeqRec:
    return QuerySeqRec(settings)
