"""Holds what baselines that read both histories share: inputs, encoder layers, pooling, alignment.

UniSAR (Shi et al., SIGIR 2024) and SESRec (Si et al., SIGIR 2023) have these in common, and the
other joint baselines the merged order, additive attention and the losses of two tasks. Axes: B
batch, S its last rows, which are searches, L history, W words, C clicks, N candidates, T the
tables' width, D the network's width, H heads, P pairs of a query and a clicked item, M negatives.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcrsr import losses
from lcrsr.attention import masked_softmax
from lcrsr.baselines.sequence import DotProduct
from lcrsr.history_encoder import Dropout
from lcrsr.ranker import Batch, Params, Rows

MASKED = -1e9
QUIET = Dropout(None, 0.0)


class Inputs(NamedTuple):
    """Holds a batch's histories as vectors.

    Attributes:
      user: [B, D].
      rec: clicked items [B, Lr, D]; rec_mask: bool [B, Lr].
      queries: [B, Ls, D], zero for a search without words.
      clicked: items clicked in searches [B, Ls, C, D]; click_mask: bool [B, Ls, C].
      search_mask: bool [B, Ls], searches with words or clicks.
    """

    user: jax.Array
    rec: jax.Array
    rec_mask: jax.Array
    queries: jax.Array
    clicked: jax.Array
    click_mask: jax.Array
    search_mask: jax.Array

    def searches(self) -> jax.Array:
        """Returns each search as its query plus the mean of its clicked items, [B, Ls, D]."""
        count = jnp.maximum(self.click_mask.sum(-1, keepdims=True), 1)
        return self.queries + self.clicked.sum(2) / count


def flat(layer: nn.Module, x: jax.Array) -> jax.Array:
    """Applies a layer over the last axis of x to x's rows [n, D].

    On a CPU the kernel's gradient takes half as long as from more axes.
    """
    out: Any = layer(x.reshape(-1, x.shape[-1]))
    return out.reshape(*x.shape[:-1], -1)


class Features(nn.Module):
    """Applies tanh of a linear map to the tables' rows [..., T], one map a kind, giving vectors
    [..., D].
    """

    width: int

    def setup(self):
        self.user, self.item, self.query = (nn.Dense(self.width) for _ in range(3))

    def __call__(self, batch: Batch, rows: Rows) -> Inputs:
        rec_mask = jnp.not_equal(batch["rec_items"], 0)
        click_mask = jnp.not_equal(batch["clicked_items"], 0)
        words = jnp.not_equal(batch["query_words"], 0)
        return Inputs(
            user=jnp.tanh(self.user(rows["user"])),
            rec=self.items(rows["rec_items"]) * rec_mask[..., None],
            rec_mask=rec_mask,
            queries=self.queries(rows["query_words"], words),
            clicked=self.items(rows["clicked_items"]) * click_mask[..., None],
            click_mask=click_mask,
            search_mask=words.any(-1) | click_mask.any(-1),
        )

    def items(self, rows: jax.Array) -> jax.Array:
        """Maps items [..., T] to [..., D]."""
        return jnp.tanh(flat(self.item, rows))

    def queries(self, words: jax.Array, mask: jax.Array) -> jax.Array:
        """Queries [..., D] from the mean of their words [..., W, T]; zero without words."""
        count = jnp.maximum(mask.sum(-1, keepdims=True), 1)
        mean = (words * mask[..., None]).sum(-2) / count
        return jnp.tanh(flat(self.query, mean)) * mask.any(-1)[..., None]


class Attention(nn.Module):
    """Applies multi-head attention with keys that are valid or not."""

    heads: int

    @nn.compact
    def __call__(self, queries: jax.Array, rows: jax.Array, mask: jax.Array) -> jax.Array:
        """Queries [B, Q, D] over rows [B, L, D] to [B, Q, D]; mask bool [B, L] or [B, Q, L].

        Zero for a query that sees no row.
        """
        mask = mask[:, None] if mask.ndim == 2 else mask
        width = queries.shape[-1]
        split = (self.heads, width // self.heads)
        q = flat(nn.Dense(width, name="query"), queries).reshape(*queries.shape[:2], *split)
        k, v = (
            flat(nn.Dense(width, name=name), rows).reshape(*rows.shape[:2], *split)
            for name in ("key", "value")
        )
        logits = jnp.einsum("bqhe,bkhe->bhqk", q, k) * split[1] ** -0.5
        mixed = jnp.einsum("bhqk,bkhe->bqhe", masked_softmax(logits, mask[:, None]), v)
        out = flat(nn.Dense(width, name="out"), mixed.reshape(queries.shape))
        return out * mask.any(-1)[..., None]


class FeedForward(nn.Module):
    """Applies x + W2 relu(W1 x), as wide inside as outside, then layer norm."""

    @nn.compact
    def __call__(self, x: jax.Array, dropout: Dropout) -> jax.Array:
        width = x.shape[-1]
        hidden = dropout.at(0)(nn.relu(flat(nn.Dense(width), x)))
        return nn.LayerNorm()(x + dropout.at(1)(flat(nn.Dense(width), hidden)))


class EncoderLayer(nn.Module):
    """Applies a post-LN Transformer layer whose queries and keys may be different rows."""

    heads: int

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: jax.Array, mask: jax.Array, dropout: Dropout
    ) -> jax.Array:
        """Lets x [B, Q, D] attend to rows [B, L, D], mask bool [B, L], or to itself as its rows."""
        attended = Attention(self.heads)(x, rows, mask)
        x = nn.LayerNorm()(x + dropout.at(0)(attended))
        return FeedForward()(x, dropout.at(1))


class HistoryEncoder(nn.Module):
    """Positions and Transformer layers over one history."""

    length: int
    layers: int
    heads: int

    @nn.compact
    def __call__(self, rows: jax.Array, mask: jax.Array, dropout: Dropout) -> jax.Array:
        """Rows [B, L, D] with mask bool [B, L], L at most `length`, to [B, L, D]."""
        _, length, width = rows.shape
        positions = self.param("positions", nn.initializers.normal(0.1), (self.length, width))
        x = rows + positions[:length]
        for number in range(self.layers):
            x = EncoderLayer(self.heads)(x, x, mask, dropout.at(number))
        return x


class TargetAttention(nn.Module):
    """Pools a history as a candidate sees it: softmax over its rows of h^T W v."""

    @nn.compact
    def __call__(
        self, rows: jax.Array, masks: tuple[jax.Array, ...], items: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Rows [B, L, D] under each of several masks bool [B, L], for items [B or 1, N, D].

        Returns:
          One [B, N, D] a mask; zero for a user none of whose rows is valid.
        """
        width = rows.shape[-1]
        kernel = self.param("kernel", nn.initializers.xavier_normal(), (width, width))
        logits = (items @ kernel.T) @ jnp.swapaxes(rows, 1, 2)
        return tuple(masked_softmax(logits, mask[:, None]) @ rows for mask in masks)


class AdditiveAttention(nn.Module):
    """Pools rows by softmax over them of q^T tanh(V x + v)."""

    hidden: int

    @nn.compact
    def __call__(self, rows: jax.Array, mask: jax.Array) -> jax.Array:
        """Rows [..., L, D] with mask bool [..., L] to [..., D]; zero where no row is valid."""
        inner = jnp.tanh(flat(nn.Dense(self.hidden, name="inner"), rows))
        logits = flat(nn.Dense(1, use_bias=False, name="query"), inner)[..., 0]
        return jnp.einsum("...l,...ld->...d", masked_softmax(logits, mask), rows)


def latest(places: jax.Array, valid: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Finds the last events of a history that lies in any order.

    Args:
      places: int32 [B, E], each event's place in time; equal ones stay in the order they have.
      valid: bool [B, E], which are events.
      length: K, how many are wanted.

    Returns:
      (indices int32 [B, min(K, E)], oldest first, bool of the same shape: which are events).
    """
    events = places.shape[1]
    order = jnp.argsort(jnp.where(valid, places, jnp.iinfo(jnp.int32).max), axis=1, stable=True)
    count = valid.sum(1)[:, None]
    wanted = jnp.maximum(count - length, 0) + jnp.arange(min(length, events))
    return jnp.take_along_axis(order, jnp.minimum(wanted, events - 1), 1), wanted < count


def recommendations(batch: Batch) -> int:
    """Counts the rows of a batch that recommend; those after them answer searches."""
    # Not `len`, for a batch's size may be a symbol.
    searches = batch["query"].shape[0] if "query" in batch else 0
    return batch["user"].shape[0] - searches


def loss_of_tasks(
    kind: str,
    recommended: jax.Array,
    searched: jax.Array | None,
    batch: Batch,
    search_weight: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the recommendation loss plus the weighted search loss, and both to log.

    Args:
      kind: of `losses.RECOMMENDATION`.
      recommended: logits [B - S, N] of the rows that recommend.
      searched: logits [S, N] of the rows that search; None where the batch has no such row.
    """
    loss, first = losses.RECOMMENDATION[kind], len(recommended)
    labels, mask = batch["labels"], batch["mask"]
    total = loss(recommended, labels[:first], mask[:first])
    if searched is None:
        return total, {kind: total}
    search = loss(searched, labels[first:], mask[first:])
    return total + search_weight * search, {kind: total, f"search_{kind}": search}


def vectors_loss_of_tasks(
    kind: str, users: jax.Array, batch: Batch, rows: Rows, items: jax.Array, search_weight: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns what `loss_of_tasks` does, of users' vectors [B, D] and any of `losses.LOSSES`."""
    first = recommendations(batch)
    total = losses.of_vectors(kind, users[:first], batch, rows, items, slice(first))
    if "query" not in batch:
        return total, {kind: total}
    search = losses.of_vectors(kind, users[first:], batch, rows, items, slice(first, None))
    return total + search_weight * search, {kind: total, f"search_{kind}": search}


class PartwiseDense(nn.Module):
    """Applies a linear map of [pooled; item; user] that maps each part by itself.

    What does not depend on the candidate is mapped once a user, and what does not depend on the
    user once a candidate.
    """

    width: int

    @nn.compact
    def __call__(self, pooled: jax.Array, items: jax.Array, users: jax.Array) -> jax.Array:
        """Maps pooled [B, N, P], items [B or 1, N, D], users [B, Q] to [B, N, width]."""
        of_pooled = flat(nn.Dense(self.width, use_bias=False, name="pooled"), pooled)
        of_items = flat(nn.Dense(self.width, use_bias=False, name="item"), items)
        return of_pooled + of_items + nn.Dense(self.width, name="user")(users)[:, None]


class Tower(nn.Module):
    """Applies an MLP with relu and dropout after each of its layers."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, dropout: Dropout) -> jax.Array:
        for number, width in enumerate(self.widths):
            x = dropout.at(number)(nn.relu(flat(nn.Dense(width), x)))
        return x


class Pairs(NamedTuple):
    """Queries and items clicked for them, with negatives of both kinds.

    Attributes:
      queries, items: [P, D]; valid: bool [P].
      negative_queries, negative_items: [M, D].
      query_allowed, item_allowed: bool [P, M], negatives that are not the pair's own.
    """

    queries: jax.Array
    items: jax.Array
    valid: jax.Array
    negative_queries: jax.Array
    negative_items: jax.Array
    query_allowed: jax.Array
    item_allowed: jax.Array


def clicked_pairs(inputs: Inputs, negative_items: jax.Array, batch: Batch, most: int) -> Pairs:
    """Returns the first `most` pairs of a batch, whose examples are in random order.

    Negative items are the users' first negative candidates, drawn uniformly, and negative queries
    the users' latest searches: B of each, where the released code draws 1,024 of each a step.

    Args:
      negative_items: [B, D], of `batch["candidates"][:, 1]`.
      most: P at most.
    """
    b, searches, clicks, width = inputs.clicked.shape
    worded = jnp.any(batch["query_words"] != 0, -1)
    valid = (inputs.click_mask & worded[..., None]).ravel()
    size = min(most, valid.size)
    (places,) = jnp.nonzero(valid, size=size, fill_value=0)
    signs = _signature(batch["query_words"])
    latest = jnp.maximum(jnp.where(worded, jnp.arange(searches), -1).max(-1), 0)[:, None]
    of_search = places // clicks
    ids = batch["clicked_items"].ravel()[places]
    own = signs.ravel()[of_search]
    negative_signs = jnp.take_along_axis(signs, latest, 1)[:, 0]
    return Pairs(
        queries=inputs.queries.reshape(b * searches, width)[of_search],
        items=inputs.clicked.reshape(-1, width)[places],
        valid=jnp.arange(size) < valid.sum(),
        negative_queries=jnp.take_along_axis(inputs.queries, latest[..., None], 1)[:, 0],
        negative_items=negative_items,
        query_allowed=(own[:, None] != negative_signs) & worded.any(-1),
        item_allowed=ids[:, None] != batch["candidates"][:, 1],
    )


def _signature(words: jax.Array) -> jax.Array:
    """Hashes the words [..., W], uint32 [...]: equal queries have equal hashes."""
    signs = jnp.zeros(words.shape[:-1], jnp.uint32)
    for place in range(words.shape[-1]):
        signs = (signs ^ words[..., place].astype(jnp.uint32)) * jnp.uint32(16777619)
    return signs


class QueryItemAlignment(nn.Module):
    """Computes InfoNCE between queries and the items clicked for them, similarity tanh(q^T W i)."""

    temperature: float

    @nn.compact
    def __call__(self, pairs: Pairs) -> jax.Array:
        """Returns the mean over pairs and both directions; zero without pairs."""
        width = pairs.items.shape[-1]
        kernel = self.param("kernel", nn.initializers.xavier_normal(), (width, width))
        scale = self.param("log_temperature", constant(math.log(self.temperature)), ())
        mapped = pairs.queries @ kernel
        positive = jnp.tanh((mapped * pairs.items).sum(-1))
        of_query = jnp.tanh(mapped @ pairs.negative_items.T)
        of_item = jnp.tanh((pairs.items @ kernel.T) @ pairs.negative_queries.T)
        each = 0.5 * (
            _info_nce(positive, of_query, pairs.item_allowed, jnp.exp(-scale))
            + _info_nce(positive, of_item, pairs.query_allowed, jnp.exp(-scale))
        )
        return (each * pairs.valid).sum() / jnp.maximum(pairs.valid.sum(), 1)


def _info_nce(positive: jax.Array, negative: jax.Array, allowed: jax.Array, scale: jax.Array):
    """Returns -log softmax of the positive [P] among itself and the allowed negatives [P, M]."""
    logits = jnp.where(allowed, negative * scale, MASKED)
    total = jnp.logaddexp(positive * scale, jax.nn.logsumexp(logits, -1))
    return total - positive * scale


def constant(value: float) -> Any:
    """Returns an initialiser that fills with `value`."""
    return lambda key, shape: jnp.full(shape, value, jnp.float32)


class TwoHistoriesRanker:
    """Ranks with a network that is given its dropout, `QUIET` outside training: a `Ranker`.

    Args:
      network: with `encode(batch, rows, dropout)`, `recommend(users, items, dropout)`,
        `losses(batch, rows, dropout)`, and `every_parameter(batch, rows)`, which calls them all.
      settings: with `width`, `init_scale` and `dropout`.
    """

    tables: tuple[str, ...] = ("user", "item", "word")
    tasks: tuple[str, ...] = ("recommendation",)
    needs_whole_tables: bool = False
    # Both ways' encoders see a history's end from its beginning.
    trains_on_windows = False

    def __init__(self, network: nn.Module, settings: Any):
        self.network, self.settings = network, settings
        self.width, self.init_scale = settings.width, settings.init_scale

    def init(self, key: jax.Array, batch: Batch, rows: Rows) -> Params:
        init = functools.partial(self.network.init, method="every_parameter")
        return jax.jit(init)({"params": key}, batch, rows)["params"]

    def loss(
        self, params: Params, batch: Batch, rows: Rows, tables: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del tables
        dropout = Dropout(key, self.settings.dropout)
        return self.apply(params, batch, rows, dropout, method="losses")

    def represent(self, params: Params, batch: Batch, rows: Rows) -> Any:
        return self.apply(params, batch, rows, QUIET, method="encode")

    def score(self, params: Params, users: Any, rows: Rows) -> jax.Array:
        return self.apply(params, users, rows["candidates"], QUIET, method="recommend")

    def score_catalogue(
        self, params: Params, users: Any, rows: Rows, items: jax.Array
    ) -> jax.Array:
        del rows
        return self.apply(params, users, items[None], QUIET, method="recommend")

    def apply(self, params: Params, *arguments: Any, method: str) -> Any:
        return self.network.apply({"params": params}, *arguments, method=method)


class VectorsRanker(DotProduct, TwoHistoriesRanker):
    """Ranks by dot products with a network's vectors [B, D] of users: a `Ranker`.

    Args:
      network: its `losses(batch, rows, items, dropout)` is also given the item table.
      settings: with `loss`, of `losses.LOSSES`, too.
    """

    def __init__(self, network: nn.Module, settings: Any):
        super().__init__(network, settings)
        self.trains_by(settings.loss)

    def loss(
        self, params: Params, batch: Batch, rows: Rows, tables: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        dropout = Dropout(key, self.settings.dropout)
        return self.apply(params, batch, rows, tables["item"], dropout, method="losses")


class TwoTasksRanker(TwoHistoriesRanker):
    """Ranks recommendations and the items of searches: a `Ranker` that answers searches.

    Its network also has `search(users, items, dropout)`, and its `encode` reads the current query.
    It trains on searches, and answers them, where `settings.search_weight` is above 0.
    """

    def __init__(self, network: nn.Module, settings: Any):
        super().__init__(network, settings)
        searches = settings.search_weight > 0
        self.tasks = ("recommendation", "search") if searches else ("recommendation",)

    def score_query(
        self, params: Params, users: Any, rows: Rows, items: jax.Array, query: jax.Array
    ) -> jax.Array:
        """Logits [B, V] of the search task for items [V, T]; `users` hold the queries."""
        del rows, query
        return self.apply(params, users, items[None], QUIET, method="search")
