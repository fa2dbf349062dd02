"""FMLP-Rec: Filter-enhanced MLP is All You Need for Sequential Recommendation (Zhou et al., WWW
2022), sections 3.2-3.4.

In place of attention every block multiplies the history's spectrum by a learned complex filter, one
a channel, which is a circular convolution over all positions; a feed-forward layer follows. Both
end in a layer norm. The state at the last position scores items by dot product.

It does not train on windows: a filter reads the whole history, what follows a position too, so that
every target needs a history of its own; training at all positions would show it the answer.

Readings. Histories end at the last position whatever their length, as released. Positions before
the first event are zero before every filter; the release lets them in as positions without an item.
Filters are for `rec_length` positions, and shorter inputs are filled up to it. The layer norms add
1e-6 to the variance, the release 1e-12. The paper trains with one negative, here with those of the
other baselines (`loss`). An empty history is legal and has the state of its last position.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.settings import Count, CountOrNone, Positive, Rate
from core.settings import Settings as Checked
from lcrsr.baselines.sequence import SequentialRanker
from lcrsr.losses import OfVectors
from lcrsr.views import Views


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """Holds sizes, dropout, and the loss, of `losses.LOSSES`."""

    width: Count
    layers: CountOrNone
    dropout: Rate
    init_scale: Positive
    loss: OfVectors
    rec_length: int


def filtered(x: jax.Array, response: jax.Array) -> jax.Array:
    """Multiplies the spectrum of x [B, L, D] over its positions by `response`, giving [B, L, D].

    Args:
      response: complex64 [L // 2 + 1, D]. Imaginary parts at frequency 0, and at L / 2 of an even
        L, change nothing.
    """
    spectrum = jnp.fft.rfft(x, axis=1, norm="ortho")
    return jnp.fft.irfft(spectrum * response, n=x.shape[1], axis=1, norm="ortho")


def latest_last(rows: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Moves events behind all padding, in order: rows [B, L, D] and bool [B, L]."""
    order = jnp.argsort(valid, axis=1, stable=True)
    return jnp.take_along_axis(rows, order[..., None], 1), jnp.take_along_axis(valid, order, 1)


class Network(nn.Module):
    """Turns rows [B, L, D] of histories into users' vectors [B, D]."""

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
        if views is not None:
            raise ValueError("expected one history a target, found windows")
        s = self.settings

        def dropped(x):
            return nn.Dropout(s.dropout, deterministic=deterministic)(x)

        missing = s.rec_length - rows.shape[1]
        rows, valid = latest_last(
            jnp.pad(rows, ((0, 0), (missing, 0), (0, 0))), jnp.pad(valid, ((0, 0), (missing, 0)))
        )
        normal = nn.initializers.normal(0.02)
        positions = self.param("positions", normal, (s.rec_length, s.width))
        x = dropped(nn.LayerNorm()(jnp.where(valid[..., None], rows, 0.0) + positions))
        for number in range(s.layers):
            shape = (2, s.rec_length // 2 + 1, s.width)
            response = jax.lax.complex(*self.param(f"filter_{number}", normal, shape))
            events = jnp.where(valid[..., None], x, 0.0)
            x = nn.LayerNorm()(x + dropped(filtered(events, response)))
            hidden = nn.Dense(s.width)(nn.gelu(nn.Dense(4 * s.width)(x)))
            x = nn.LayerNorm()(x + dropped(hidden))
        return x[:, -1]


class FMLPRec(SequentialRanker):
    """Ranks by the last state of filtered histories: a `Ranker`."""

    trains_on_windows = False


def ranker(settings: Settings) -> FMLPRec:
    return FMLPRec(
        Network(settings),
        width=settings.width,
        init_scale=settings.init_scale,
        loss=settings.loss,
    )
