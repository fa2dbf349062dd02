"""BERT4Rec (Sun et al., CIKM 2019), sections 3.2-3.6: a bidirectional Transformer, a cloze task.

Training hides a random share of a sequence's items behind a learned mask row and recovers each from
both sides, in the paper by a softmax over all items; an example here is the history with its target
appended. Scoring appends the mask row to the history and reads its state.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.settings import Count, CountOrNone, Positive, Rate, Share
from core.settings import Settings as Checked
from lcrsr import losses
from lcrsr.baselines.sequence import DotProduct, Transformer
from lcrsr.ranker import Batch, Params, Rows, drawn_parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """Holds sizes, dropout, the share of items that the cloze task hides, and its loss."""

    width: Count
    layers: CountOrNone
    heads: Count
    dropout: Rate
    init_scale: Positive
    loss: losses.OfVectors = losses.FULL
    mask_share: Share
    rec_length: int

    def check(self) -> None:
        self.check_divisible("width", by="heads")


class Network(nn.Module):
    """Rows [B, L, D], where they are hidden [B, L], to states [B, L, D]."""

    settings: Settings

    @nn.compact
    def __call__(
        self, rows: jax.Array, valid: jax.Array, hidden: jax.Array, *, deterministic: bool
    ) -> jax.Array:
        s = self.settings
        normal = nn.initializers.normal(s.init_scale)
        mask_row = self.param("mask_row", normal, (s.width,))
        rows = jnp.where(hidden[..., None], mask_row, rows)
        encoder = Transformer(s.rec_length + 1, s.layers, s.heads, s.dropout, causal=False)
        states = encoder(rows, valid, deterministic=deterministic)
        return nn.LayerNorm()(nn.gelu(nn.Dense(s.width)(states)))


class BERT4Rec(DotProduct):
    """Ranks by BERT4Rec's vector of the history, as a `Ranker`."""

    # It sees a sequence both ways, and learns from each several times as it is.
    trains_on_windows = False

    def __init__(self, settings: Settings):
        self.settings, self.network = settings, Network(settings)
        self.width, self.init_scale = settings.width, settings.init_scale
        self.trains_by(settings.loss)

    def init(self, key: jax.Array, batch: Batch, rows: Rows) -> Params:
        sequence, _, valid, last = self._appended(batch, rows)
        return drawn_parameters(self.network, key, sequence, valid, last)

    def _appended(self, batch: Batch, rows: Rows):
        """Joins history and target in one sequence: rows, ids, valid, where the target is."""
        ids = jnp.pad(batch["rec_items"], ((0, 0), (0, 1)))
        places = jnp.arange(ids.shape[1])
        after_last = jnp.where(ids != 0, places + 1, 0).max(1)
        last = places == after_last[:, None]
        ids = jnp.where(last, batch["candidates"][:, :1], ids)
        sequence = jnp.pad(rows["rec_items"], ((0, 0), (0, 1), (0, 0)))
        sequence = jnp.where(last[..., None], rows["candidates"][:, :1], sequence)
        return sequence, ids, (ids != 0) | last, last

    def loss(
        self, params: Params, batch: Batch, rows: Rows, tables: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        sequence, ids, valid, last = self._appended(batch, rows)
        cloze_key, dropout_key = jax.random.split(key)
        places, hides = self._cloze(cloze_key, valid, last)
        users = jnp.arange(len(places))[:, None]
        hidden = jnp.zeros_like(valid).at[users, places].set(hides)
        states: Any = self.network.apply(
            {"params": params},
            sequence,
            valid,
            hidden,
            deterministic=False,
            rngs={"dropout": dropout_key},
        )
        # A place that is not hidden costs nothing; any id will do for it.
        targets = jnp.where(hides, ids[users, places], 1)
        value = losses.of_states(
            self.kind,
            states[users, places],
            targets,
            sequence[users, places],
            hides * batch["mask"][:, None],
            batch,
            rows,
            tables["item"],
        )
        return value, {"cloze": value}

    def _cloze(self, key, valid, last):
        """Places [B, M] that may be hidden, and which are: the last item always."""
        share = self.settings.mask_share
        noise = jnp.where(valid, jax.random.uniform(key, valid.shape), 2.0)
        noise = jnp.where(last, -1.0, noise)
        # Only so many states are scored against all items, about what the share hides.
        most = 1 + math.ceil(share * self.settings.rec_length)
        negative, places = jax.lax.top_k(-noise, most)
        return places, -negative < share

    def represent(self, params: Params, batch: Batch, rows: Rows) -> Any:
        sequence, _, valid, last = self._appended(batch, rows)
        states: Any = self.network.apply(
            {"params": params}, sequence, valid, last, deterministic=True
        )
        return (states * last[..., None]).sum(1)


def ranker(settings: Settings) -> BERT4Rec:
    return BERT4Rec(settings)
