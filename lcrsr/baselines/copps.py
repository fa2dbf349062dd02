"""CoPPS-like: contrastive learning for personalised product search (Dai et al., KDD 2023).

The paper's abstract alone is known to us, and no code: three tasks of augmentation and contrast on
sequences of searches, which use an external knowledge graph and correlations within and between
users' sequences. The encoder, the equations, weights and rates are not. Ours is TEM's encoder and
loss, plus `contrastive_weight` times NT-Xent between two states for the same request: each has
items bought before hidden, or a piece of them in another order, by a coin; and where another
request of the batch has the same query and target, `contrastive_weight` times NT-Xent between the
two requests' states. The graph is left out: logs have none. At `contrastive_weight=0` it is TEM bit
for bit.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.settings import Count, CountOrNone, Positive, Rate, Share, Weight
from core.settings import Settings as Checked
from lcrsr import losses
from lcrsr.baselines import product_search
from lcrsr.baselines.contrast import hidden_places, nt_xent, piece_sizes
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
    """Holds sizes, dropout and the losses.

    Attributes:
      width, length, layers, heads, inner, loss: as TEM's.
      contrastive_weight: lambda; 0 leaves TEM.
      temperature: tau of NT-Xent.
      hide, reorder: the share of the items bought that a view hides, or shuffles.
    """

    width: Count
    length: Count
    layers: CountOrNone
    heads: Count
    inner: Count
    dropout: Rate
    init_scale: Positive
    loss: losses.OfVectors
    contrastive_weight: Weight
    temperature: Positive
    hide: Share
    reorder: Share

    def check(self) -> None:
        self.check_divisible("width", by="heads")


def shuffled_places(key: jax.Array, counts: jax.Array, length: int, share: float) -> jax.Array:
    """Draws an order in which a piece of floor(share * n) of n places is shuffled: int32 [B, L]."""
    start_key, order_key = jax.random.split(key)
    size = piece_sizes(share, counts, length)
    begin = jax.random.randint(start_key, counts.shape, 0, counts - size + 1)[:, None]
    places, end = jnp.arange(length), begin + size[:, None]
    noise = begin + jax.random.uniform(order_key, (len(counts), length)) * size[:, None]
    inside = (places >= begin) & (places < end)
    return jnp.argsort(jnp.where(inside, noise, places.astype(noise.dtype)), 1, stable=True)


def partners(queries: jax.Array, targets: jax.Array, counts: jax.Array) -> jax.Array:
    """Returns the first other request with the same query and target, int32 [B]; else its own.

    Args:
      queries: int32 [B, W].
      targets: int32 [B].
      counts: bool [B], which are requests.
    """
    same = (queries[:, None] == queries).all(-1) & (targets[:, None] == targets)
    same &= counts[:, None] & counts & ~jnp.eye(len(targets), dtype=bool)
    return jnp.where(same.any(1), jnp.argmax(same, 1), jnp.arange(len(targets)))


class Network(SearchNetwork):
    """Encodes queries with the items bought before them, as they are and changed."""

    def setup(self):
        s = self.settings
        self.query = QueryEncoder()
        self.encoder = PurchaseEncoder(s.layers, s.heads, s.inner)
        normal = nn.initializers.normal(s.init_scale)
        self.mask_row = self.param("mask_row", normal, (s.width,))

    def encode(self, batch: Batch, rows: Rows, dropout: Dropout) -> jax.Array:
        query = self.query(rows["query"], jnp.not_equal(batch["query"], 0))
        items, valid = product_search.purchases(batch, rows, self.settings.length)
        return self.encoder(query, items, valid, dropout)

    def view(self, batch: Batch, rows: Rows, dropout: Dropout, key: jax.Array) -> jax.Array:
        """Returns the states [B, D] of requests whose histories are changed."""
        s = self.settings
        query = self.query(rows["query"], jnp.not_equal(batch["query"], 0))
        items, valid = product_search.purchases(batch, rows, s.length)
        length, counts = valid.shape[1], valid.sum(1)
        coin, hide_key, order_key = jax.random.split(key, 3)
        hides = jax.random.bernoulli(coin, 0.5, counts.shape)[:, None]
        hide_keys = jax.random.split(hide_key, len(counts))
        hidden = jax.vmap(hidden_places, (0, 0, None, None))(hide_keys, counts, length, s.hide)
        gone = hides & hidden
        order = shuffled_places(order_key, counts, length, s.reorder)
        order = jnp.where(hides, jnp.arange(length), order)
        changed = jnp.where(gone[..., None], self.mask_row, items)
        changed = jnp.take_along_axis(changed, order[..., None], 1)
        return self.encoder(query, changed, valid, dropout)

    def losses(
        self, batch: Batch, rows: Rows, items: jax.Array, dropout: Dropout
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        s = self.settings
        value, stats = super().losses(batch, rows, items, dropout)
        if s.contrastive_weight == 0.0 or dropout.key is None:
            return value, stats
        # Keys of their own, so that the loss before draws what TEM's does.
        keys = jax.random.split(jax.random.fold_in(dropout.key, 2**20), 4)
        first, second = (
            self.view(batch, rows, Dropout(keys[2 + n], s.dropout), _plain(keys[n]))
            for n in range(2)
        )
        counts = batch["mask"] > 0
        requests = jnp.arange(len(counts))  # each is the others' negative, of one user or not
        within = nt_xent(first, second, requests, counts, s.temperature)
        other = partners(batch["query"], batch["candidates"][:, 0], counts)
        both = counts & (other != requests)
        between = nt_xent(first, second[other], requests, both, s.temperature)
        total = value + s.contrastive_weight * (within + between)
        return total, stats | {"within": within, "between": between}


def _plain(key: jax.Array) -> jax.Array:
    """Returns a key of the default generator: that of accelerators draws no exact choices."""
    return jax.random.key(jax.random.bits(key, dtype=jnp.uint32))


def search_ranker(settings: Settings) -> SearchRanker:
    return SearchRanker(Network(settings), settings)
