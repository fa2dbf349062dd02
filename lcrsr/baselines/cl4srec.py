"""CL4SRec: Contrastive Learning for Sequential Recommendation (Xie et al., ICDE 2022, arXiv
2010.14395).

SASRec with a second loss: two changed views of a history (a piece cut out, items hidden, a piece
shuffled) must be nearer to one another than to the views of other users, by NT-Xent.

Readings; the paper's settings and its own code were not found. The encoder is that of our SASRec
(re-implementations have a post-LN one with a wider feed-forward layer), so that a difference from
SASRec, same loss, is what contrast does; at `contrastive_weight=0` it is SASRec bit for bit. The
two views of a history are always made in different ways. Views are drawn from the update's key, the
user and the target; a view never changes what the next-item loss reads. Every target has its own
pair of views, on windows too, where neighbouring targets of one user come together: views of the
same user are never each other's negatives. Empty histories have no views.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.settings import Count, CountOrNone, Positive, Rate, Share, Weight
from core.settings import Settings as Checked
from lcrsr.baselines.contrast import hidden_places, nt_xent, piece_sizes
from lcrsr.baselines.sequence import SequentialRanker, Transformer
from lcrsr.losses import OfVectors
from lcrsr.ranker import Batch, Params, Rows
from lcrsr.views import Views, last_state

_WAYS = 3  # to change a history


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """Holds sizes and losses.

    Attributes:
      loss: of `losses.LOSSES`, of the next item.
      contrastive_weight: lambda; 0 leaves SASRec.
      temperature: tau of NT-Xent.
      crop, hide, reorder: eta, gamma and beta, the share of a history that a view keeps, hides or
        shuffles.
    """

    width: Count
    layers: CountOrNone
    heads: Count
    dropout: Rate
    init_scale: Positive
    loss: OfVectors
    rec_length: int
    contrastive_weight: Weight
    temperature: Positive
    crop: Share
    hide: Share
    reorder: Share

    def check(self) -> None:
        self.check_divisible("width", by="heads")


class Network(nn.Module):
    """Turns rows [V, L, D] of histories, or of windows, into users' vectors [B, D]."""

    settings: Settings

    @nn.compact
    def __call__(
        self,
        rows: jax.Array,
        valid: jax.Array,
        views: Views | None = None,
        hidden: jax.Array | None = None,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """Rows that are `hidden`, bool [V, L], are replaced by one learned row."""
        s = self.settings
        mask_row = self.param("mask_row", nn.initializers.normal(s.init_scale), (s.width,))
        if hidden is not None:
            rows = jnp.where(hidden[..., None], mask_row, rows)
        encoder = Transformer(s.rec_length, s.layers, s.heads, s.dropout, causal=True)
        states = encoder(rows, valid, views, deterministic=deterministic)
        return last_state(states, valid, views)


def _start(key: jax.Array, count: jax.Array, size: jax.Array) -> jax.Array:
    """Draws where a piece of `size` of `count` events begins."""
    return jax.random.randint(key, (), 0, count - size + 1)


def cropped(key: jax.Array, count: jax.Array, length: int, share: float) -> jax.Array:
    """Draws a piece of floor(share * count) events, one at least: their places, then -1, [L]."""
    size = jnp.maximum(piece_sizes(share, count, length), jnp.minimum(count, 1))
    places = jnp.arange(length)
    return jnp.where(places < size, places + _start(key, count, size), -1)


def reordered(key: jax.Array, count: jax.Array, length: int, share: float) -> jax.Array:
    """Shuffles a piece of floor(share * count) events: places of all events, then -1, [L]."""
    start_key, order_key = jax.random.split(key)
    size = piece_sizes(share, count, length)
    places = jnp.arange(length)
    begin = _start(start_key, count, size)
    inside = (places >= begin) & (places < begin + size)
    noise = jnp.where(inside, jax.random.uniform(order_key, (length,)), 2.0)
    shuffled = jnp.argsort(noise)[jnp.clip(places - begin, 0, length - 1)]
    return jnp.where(places < count, jnp.where(inside, shuffled, places), -1)


def two_views(
    key: jax.Array, count: jax.Array, length: int, *, crop: float, hide: float, reorder: float
) -> tuple[jax.Array, jax.Array]:
    """Draws two views, made in different ways, of a history of `count` events.

    Returns:
      (places int32 [2, L] of the events of each view, -1 behind the last; which of them are
      hidden, bool [2, L]). A history of one event is left alone.
    """
    way_key, *view_keys = jax.random.split(key, 3)
    first_key, second_key = jax.random.split(way_key)
    first = jax.random.randint(first_key, (), 0, _WAYS)
    second = (first + jax.random.randint(second_key, (), 1, _WAYS)) % _WAYS
    whole = jnp.where(jnp.arange(length) < count, jnp.arange(length), -1)
    nothing = jnp.zeros(length, bool)

    def view(key, way):
        ways = (
            (cropped(key, count, length, crop), nothing),
            (whole, hidden_places(key, count, length, hide)),
            (reordered(key, count, length, reorder), nothing),
        )
        way = jnp.where(count > 1, way, _WAYS)
        places, hidden = (jnp.stack(parts) for parts in zip(*ways, (whole, nothing), strict=True))
        return places[way], hidden[way]

    each = [view(*pair) for pair in zip(view_keys, (first, second), strict=True)]
    places, hidden = zip(*each, strict=True)
    return jnp.stack(places), jnp.stack(hidden)


class CL4SRec(SequentialRanker):
    """Ranks as SASRec, trained with contrast between views of histories: a `Ranker`."""

    def __init__(self, settings: Settings):
        super().__init__(
            Network(settings),
            width=settings.width,
            init_scale=settings.init_scale,
            loss=settings.loss,
        )
        self.settings = settings

    def loss(
        self, params: Params, batch: Batch, rows: Rows, tables: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        value, stats = super().loss(params, batch, rows, tables, key)
        if self.settings.contrastive_weight == 0.0:
            return value, stats
        contrast = self._contrast(params, batch, rows, jax.random.fold_in(key, 1))
        return value + self.settings.contrastive_weight * contrast, stats | {"contrast": contrast}

    def _contrast(self, params: Params, batch: Batch, rows: Rows, key: jax.Array) -> jax.Array:
        s = self.settings
        history, valid, windows = self.history(batch, rows)
        seen = valid if windows is None else windows.of_targets(valid)
        # The events of each target, oldest first.
        length = min(s.rec_length, seen.shape[1])
        order = jnp.argsort(~seen, axis=1, stable=True)[:, :length]
        count = seen.sum(1)
        # Counters of their own: on accelerators the key of dropout has a generator that does not
        # draw for each of several keys apart.
        view_key = jax.random.key(jax.random.bits(jax.random.fold_in(key, 0), dtype=jnp.uint32))
        users, targets = batch["user"], batch["candidates"][:, 0]

        def of_example(user, target, count):
            own = jax.random.fold_in(jax.random.fold_in(view_key, user), target)
            return two_views(own, count, length, crop=s.crop, hide=s.hide, reorder=s.reorder)

        places, hidden = jax.vmap(of_example, out_axes=1)(users, targets, count)
        exists = (places >= 0).reshape(-1, length)
        places = jnp.take_along_axis(order[None], jnp.maximum(places, 0), 2)
        window = jnp.arange(len(users)) // (len(users) // len(history))
        of_views = history[window[:, None], places].reshape(-1, length, history.shape[-1])
        states: Any = self.network.apply(
            {"params": params},
            jnp.where(exists[..., None], of_views, 0.0),
            exists,
            None,
            hidden.reshape(-1, length),
            deterministic=False,
            rngs={"dropout": jax.random.fold_in(key, 1)},
        )
        counts = (batch["mask"] > 0) & (count > 0)
        first, second = jnp.split(states, 2)
        return nt_xent(first, second, users, counts, s.temperature)


def ranker(settings: Settings) -> CL4SRec:
    return CL4SRec(settings)
