"""SASRec: Self-Attentive Sequential Recommendation (Kang and McAuley, ICDM 2018), Eq. 2-7.

A causal Transformer over the clicked items; the state of the last one scores items by dot product.
The paper trains with one sampled negative a position and binary cross-entropy (`loss='bce'`);
`loss='full_cross_entropy'` is the softmax over all items.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax

from core.settings import Count, CountOrNone, Positive, Rate
from core.settings import Settings as Checked
from lcrsr.baselines.sequence import SequentialRanker, Transformer
from lcrsr.losses import OfVectors
from lcrsr.views import Views, last_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """Holds sizes, dropout, and the loss, of `losses.LOSSES`."""

    width: Count
    layers: CountOrNone
    heads: Count
    dropout: Rate
    init_scale: Positive
    loss: OfVectors
    rec_length: int

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
        *,
        deterministic: bool,
    ) -> jax.Array:
        s = self.settings
        encoder = Transformer(s.rec_length, s.layers, s.heads, s.dropout, causal=True)
        states = encoder(rows, valid, views, deterministic=deterministic)
        return last_state(states, valid, views)


def ranker(settings: Settings) -> SequentialRanker:
    return SequentialRanker(
        Network(settings),
        width=settings.width,
        init_scale=settings.init_scale,
        loss=settings.loss,
    )
