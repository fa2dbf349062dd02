"""UniSAR: Modeling User Transition Behaviors between Search and Recommendation (SIGIR 2024).

Shi et al., arXiv 2404.09520: transitions are extracted by Transformers with masks (r2r and s2s
within a kind; s2r and r2s over the merged history with every pair of the same kind masked), aligned
by contrastive losses, fused by cross-attention (section 4.2-4.4), and scored with one tower a task
over shared and specific experts (section 4.5). Sizes and weights follow the released code.

Where it departs from that code: an item of the merged history attends to the other kind alone, so
the masked Transformer is computed as two attentions with shared weights, which gives the same
numbers; dropout falls on the outputs of layers and not on attention weights; negatives of the
query-item loss come from the batch (`two_histories.clicked_pairs`); temperatures stay positive.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.settings import Count, CountOrNone, Positive, Rate, Weight, Widths
from core.settings import Settings as Checked
from lcrsr import losses
from lcrsr.baselines import two_histories
from lcrsr.baselines.two_histories import (
    MASKED,
    QUIET,
    EncoderLayer,
    HistoryEncoder,
    Inputs,
    TwoHistoriesRanker,
)
from lcrsr.history_encoder import Dropout
from lcrsr.ranker import Batch, Params, Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """Holds sizes, and the weights of the losses.

    Attributes:
      width: T of the tables' rows.
      hidden: D of the network.
      experts, expert_width: shared experts, as many specific ones a task, and their width.
      tower_widths: hidden widths of a task's tower over the mixed experts.
      loss: of both tasks, over a target and its negatives.
      alignment_weight, alignment_temperature: of the query-item loss.
      alignment_pairs: pairs of a query and a clicked item that it takes from a batch, at most.
      transition_weight, transition_temperature: of the transition loss.
      search_weight: of the search task's loss; 0 trains on recommendation alone.
    """

    width: Count
    hidden: Count
    layers: CountOrNone
    heads: Count
    dropout: Rate
    init_scale: Positive
    loss: losses.OfPairs = "bce"
    experts: Count
    expert_width: Count
    tower_widths: Widths
    alignment_weight: Weight
    alignment_temperature: Positive
    alignment_pairs: Count
    transition_weight: Weight
    transition_temperature: Positive
    search_weight: Weight
    rec_length: int
    search_length: int

    def check(self) -> None:
        self.check_divisible("hidden", by="heads")


class Transitions(NamedTuple):
    """Rows a kind of event, [B, Lr, D] at clicks and [B, Ls, D] at searches.

    Attributes:
      r2r, s2r: of clicks, from clicks and from searches.
      s2s, r2s: of searches, from searches and from clicks.
    """

    r2r: jax.Array
    s2r: jax.Array
    s2s: jax.Array
    r2s: jax.Array


class Encoded(NamedTuple):
    """Holds a batch's users: transitions, both kinds fused, the user's vector [B, D] and the
    inputs.
    """

    inputs: Inputs
    transitions: Transitions
    rec: jax.Array
    search: jax.Array


class Merged(nn.Module):
    """Applies the Transformer over the merged history, whose events see the other kind alone."""

    settings: Settings

    @nn.compact
    def __call__(
        self, inputs: Inputs, rec_order: jax.Array, search_order: jax.Array, dropout: Dropout
    ) -> tuple[jax.Array, jax.Array]:
        """Returns s2r [B, Lr, D] and r2s [B, Ls, D]; orders int32 [B, L], places in the merge."""
        s = self.settings
        places = self.param("positions", _small(), (s.rec_length + s.search_length, s.hidden))
        rec, search = inputs.rec + places[rec_order], inputs.searches() + places[search_order]
        for number in range(s.layers):
            layer, drop = EncoderLayer(s.heads), dropout.at(number)
            rec, search = (
                layer(rec, search, inputs.search_mask, drop.at(0)),
                layer(search, rec, inputs.rec_mask, drop.at(1)),
            )
        return rec, search


class Fusion(nn.Module):
    """Applies Transformer decoder layers: transitions within a kind attend to the other kind's."""

    settings: Settings

    @nn.compact
    def __call__(
        self, own: jax.Array, other: jax.Array, mask: jax.Array, dropout: Dropout
    ) -> jax.Array:
        x = own
        for number in range(self.settings.layers):
            drop = dropout.at(number)
            attended = two_histories.Attention(self.settings.heads)(x, x, mask)
            x = nn.LayerNorm()(x + drop.at(0)(attended))
            x = EncoderLayer(self.settings.heads)(x, other, mask, drop.at(1))
        return x


class Alignment(nn.Module):
    """Computes InfoNCE between the two transitions of a kind, averaged over a user's events.

    The other users' transitions of either sort are negatives; similarity is tanh(a^T W b).
    """

    temperature: float

    @nn.compact
    def __call__(self, own: jax.Array, other: jax.Array, mask: jax.Array, counts: jax.Array):
        """Returns the mean over users that count, bool [B]; rows [B, L, D], mask bool [B, L]."""
        width = own.shape[-1]
        kernel = self.param("kernel", nn.initializers.xavier_normal(), (width, width))
        scale = self.param(
            "log_temperature", two_histories.constant(math.log(self.temperature)), ()
        )
        length = jnp.maximum(mask.sum(-1), 1)[:, None]
        views = [(rows * mask[..., None]).sum(1) / length for rows in (own, other)]
        both = jnp.concatenate(views)
        logits = jnp.tanh((both @ kernel) @ both.T) * jnp.exp(-scale)
        size = len(counts)
        there = jnp.concatenate([counts, counts])
        shown = there[None, :] & ~jnp.eye(2 * size, dtype=bool)
        each = jax.nn.logsumexp(jnp.where(shown, logits, MASKED), -1)
        partner = jnp.roll(jnp.arange(2 * size), size)
        each -= jnp.take_along_axis(logits, partner[:, None], 1)[:, 0]
        return (each * there).sum() / jnp.maximum(there.sum(), 1)


class Experts(nn.Module):
    """Applies a gated mixture of shared and specific experts, then the task's tower: [B, N]."""

    settings: Settings

    def setup(self):
        s = self.settings
        width = s.experts * s.expert_width
        self.shared = two_histories.PartwiseDense(width)
        self.specific = [two_histories.PartwiseDense(width) for _ in range(2)]
        self.gates = [two_histories.PartwiseDense(2 * s.experts) for _ in range(2)]
        self.towers = [two_histories.Tower(s.tower_widths) for _ in range(2)]
        self.logits = [nn.Dense(1) for _ in range(2)]

    def __call__(
        self,
        task: int,
        pooled: jax.Array,
        items: jax.Array,
        users: jax.Array,
        dropout: Dropout,
    ) -> jax.Array:
        """Scores for task 0, recommendation, or 1, search; pooled [B, N, 2D], items [B or 1, N, D],
        users [B, 2D].
        """
        s = self.settings
        parts = (pooled, items, users)
        hidden = jnp.concatenate([self.specific[task](*parts), self.shared(*parts)], -1)
        hidden = dropout.at(0)(nn.relu(hidden))
        hidden = hidden.reshape(*hidden.shape[:-1], 2 * s.experts, s.expert_width)
        gate = nn.softmax(self.gates[task](*parts))
        mixed = jnp.einsum("bnk,bnke->bne", gate, hidden)
        return self.logits[task](self.towers[task](mixed, dropout.at(1)))[..., 0]


class Network(nn.Module):
    """Extracts, aligns and fuses the transitions of both histories, and predicts."""

    settings: Settings

    def setup(self):
        s = self.settings
        self.features = two_histories.Features(s.hidden)
        self.merged = Merged(s)
        self.own_rec, self.own_search = (
            HistoryEncoder(length, s.layers, s.heads) for length in (s.rec_length, s.search_length)
        )
        self.fuse_rec, self.fuse_search = Fusion(s), Fusion(s)
        self.pool_rec, self.pool_search = (two_histories.TargetAttention() for _ in range(2))
        self.experts = Experts(s)
        self.no_query = self.param("no_query", _small(), (s.hidden,))
        self.query_item = two_histories.QueryItemAlignment(s.alignment_temperature)
        self.align_rec, self.align_search = (Alignment(s.transition_temperature) for _ in range(2))

    def encode(self, batch: Batch, rows: Rows, dropout: Dropout) -> Encoded:
        inputs = self.features(batch, rows)
        s2r, r2s = self.merged(inputs, batch["rec_order"], batch["search_order"], dropout.at(0))
        r2r = self.own_rec(inputs.rec, inputs.rec_mask, dropout.at(1))
        s2s = self.own_search(inputs.searches(), inputs.search_mask, dropout.at(2))
        return Encoded(
            inputs,
            Transitions(r2r=r2r, s2r=s2r, s2s=s2s, r2s=r2s),
            rec=self.fuse_rec(r2r, s2r, inputs.rec_mask, dropout.at(3)),
            search=self.fuse_search(s2s, r2s, inputs.search_mask, dropout.at(4)),
        )

    def recommend(self, users: Encoded, items: jax.Array, dropout: Dropout) -> jax.Array:
        """Logits [B, N] of items [B or 1, N, T]."""
        nothing = jnp.broadcast_to(self.no_query, users.inputs.user.shape)
        return self._predict(0, users, items, nothing, dropout)

    def search(
        self, users: Encoded, items: jax.Array, words: jax.Array, mask: jax.Array, dropout: Dropout
    ) -> jax.Array:
        """Logits [B, N] of items [B, N, T] for the current queries' words [B, W, T]."""
        return self._predict(1, users, items, self.features.queries(words, mask), dropout)

    def _predict(self, task, users, items, query, dropout):
        items = self.features.items(items)
        (rec,) = self.pool_rec(users.rec, (users.inputs.rec_mask,), items)
        (search,) = self.pool_search(users.search, (users.inputs.search_mask,), items)
        pooled = jnp.concatenate([rec, search], -1)
        both = jnp.concatenate([users.inputs.user, query], -1)
        return self.experts(task, pooled, items, both, dropout)

    def contrastive(self, users: Encoded, batch: Batch, rows: Rows) -> tuple[jax.Array, jax.Array]:
        """Returns the query-item loss and the sum of both kinds' transition losses."""
        t, inputs = users.transitions, users.inputs
        negative_items = self.features.items(rows["candidates"][:, 1])
        pairs = two_histories.clicked_pairs(
            inputs, negative_items, batch, self.settings.alignment_pairs
        )
        # Without the other kind there is no transition between the two.
        counts = inputs.rec_mask.any(-1) & inputs.search_mask.any(-1) & (batch["mask"] > 0)
        return self.query_item(pairs), self.align_rec(
            t.r2r, t.s2r, inputs.rec_mask, counts
        ) + self.align_search(t.s2s, t.r2s, inputs.search_mask, counts)

    def losses(
        self, batch: Batch, rows: Rows, dropout: Dropout
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the recommendation loss plus, weighted, the search loss, and their parts."""
        s = self.settings
        users = self.encode(batch, rows, dropout.at(0))
        first = len(batch["user"]) - len(batch.get("query", ()))
        total, stats = self._task_losses("", users, batch, rows, slice(0, first), dropout.at(1))
        if "query" in batch:
            part = slice(first, None)
            of_search, parts = self._task_losses("search_", users, batch, rows, part, dropout.at(2))
            total, stats = total + s.search_weight * of_search, stats | parts
        return total, stats

    def _task_losses(self, prefix, users, batch, rows, part, dropout):
        s = self.settings
        users = jax.tree.map(lambda x: x[part], users)
        here, here_rows = (
            {name: x[part] for name, x in fields.items() if name != "query"}
            for fields in (batch, rows)
        )
        if prefix:
            mask = jnp.not_equal(batch["query"], 0)
            logits = self.search(users, here_rows["candidates"], rows["query"], mask, dropout)
        else:
            logits = self.recommend(users, here_rows["candidates"], dropout)
        click = losses.RECOMMENDATION[s.loss](logits, here["labels"], here["mask"])
        alignment, transition = self.contrastive(users, here, here_rows)
        total = click + s.alignment_weight * alignment + s.transition_weight * transition
        return total, {
            f"{prefix}{s.loss}": click,
            f"{prefix}alignment": alignment,
            f"{prefix}transition": transition,
        }

    def every_parameter(self, batch: Batch, rows: Rows) -> None:
        """Calls every part once, the search task too, so that `init` makes all parameters."""
        users = self.encode(batch, rows, QUIET)
        self.recommend(users, rows["candidates"], QUIET)
        words, mask = rows["query_words"][:, 0], batch["query_words"][:, 0] != 0
        self.search(users, rows["candidates"], words, mask, QUIET)
        self.contrastive(users, batch, rows)


class UniSAR(TwoHistoriesRanker):
    """Ranks recommendations, a `Ranker`; batches that end in search examples train both tasks."""

    def __init__(self, settings: Settings):
        super().__init__(Network(settings), settings)
        searches = settings.search_weight > 0
        self.tasks = ("recommendation", "search") if searches else ("recommendation",)

    def search(self, params: Params, users: Encoded, batch: Batch, rows: Rows) -> jax.Array:
        """Logits [B, N] of the search task: candidates for the current queries `query` [B, W]."""
        arguments = (users, rows["candidates"], rows["query"], jnp.not_equal(batch["query"], 0))
        return self.apply(params, *arguments, QUIET, method="search")

    def score_query(
        self, params: Params, users: Encoded, rows: Rows, items: jax.Array, query: jax.Array
    ) -> jax.Array:
        """Logits [B, V] of the search task for items [V, T] and queries int32 [B, W]."""
        arguments = (users, items[None], rows["query"], jnp.not_equal(query, 0))
        return self.apply(params, *arguments, QUIET, method="search")


def ranker(settings: Settings) -> UniSAR:
    return UniSAR(settings)


def _small():
    return nn.initializers.normal(0.1)
