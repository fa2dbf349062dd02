"""LRURec: Linear Recurrent Units for Sequential Recommendation (Yue et al., WSDM 2024), section 3.

Each block is a diagonal linear recurrence over complex states, h_k = lambda h_{k-1} + gamma (W_in
x_k + b), read back as a real residual, and a feed-forward layer; both end in a layer norm. There
are no positions: the recurrence tells order. All its steps are one associative scan.

Readings. The feed-forward layer ends without the second GELU that the paper prints, as in the
released code. A row that is no event leaves the state as it is, so that padding on either side, or
a hole, changes nothing; the release forgets the state there. An item's bias is the last number of
its table row (so rows have one number more than the network's width) and a user's vector ends in
1: scores are dot products. It starts like the rest of the row and not from 0. The release trains
at every position from one sequence a user; here a position is a target of its own, and windows
share the scan, whose state then goes back further than one history, to where the window begins.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.settings import Count, CountOrNone, Positive, Rate
from core.settings import Settings as Checked
from lcrsr.baselines.sequence import SequentialRanker
from lcrsr.losses import OfVectors
from lcrsr.views import Views, last_state

# The ring that |lambda| starts in.
_LEAST, _MOST = 0.8, 0.99
_NORMAL = nn.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """Holds sizes, dropout, and the loss, of `losses.LOSSES`."""

    width: Count
    layers: CountOrNone
    dropout: Rate
    init_scale: Positive
    loss: OfVectors


def linear_recurrence(
    decay: jax.Array, inputs: jax.Array, valid: jax.Array, begins: jax.Array
) -> jax.Array:
    """Returns the states h_k = decay h_{k-1} + inputs_k, [B, L, M], by an associative scan.

    Args:
      decay: complex64 [M].
      inputs: complex64 [B, L, M].
      valid: bool [B, L]; other rows repeat the state before them.
      begins: bool [B, L], rows before which the state is zero again.
    """
    kept = jnp.where(valid[..., None], decay, 1.0)
    kept = jnp.where(begins[..., None], 0.0, kept)

    def after(earlier, later):
        return earlier[0] * later[0], later[0] * earlier[1] + later[1]

    return jax.lax.associative_scan(after, (kept, inputs * valid[..., None]), axis=1)[1]


def _ring(key: jax.Array, states: int) -> jax.Array:
    """Draws log nu, log theta and log gamma, [3, M], with |lambda| between .8 and .99."""
    radius_key, phase_key = jax.random.split(key)
    square = jax.random.uniform(radius_key, (states,), minval=_LEAST**2, maxval=_MOST**2)
    phase = jax.random.uniform(phase_key, (states,), minval=1e-6, maxval=2 * jnp.pi)
    return jnp.stack([jnp.log(-0.5 * jnp.log(square)), jnp.log(phase), 0.5 * jnp.log(1 - square)])


class Recurrence(nn.Module):
    """Applies the recurrence with 2D states and reads it back: rows [B, L, D] to rows [B, L, D]."""

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array, begins: jax.Array) -> jax.Array:
        width = x.shape[-1]
        nu, theta, gamma = jnp.exp(self.param("ring", _ring, 2 * width))
        decay = jnp.exp(jax.lax.complex(-nu, theta))

        def linear(name, features):
            return nn.Dense(features, kernel_init=_NORMAL, bias_init=_NORMAL, name=name)

        # Real and imaginary parts beside one another: real products are faster than complex ones.
        real, imaginary = jnp.split(linear("inputs", 4 * width)(x), 2, -1)
        states = linear_recurrence(
            decay, jax.lax.complex(gamma * real, gamma * imaginary), valid, begins
        )
        # Re(W h + c), the sign of W's imaginary part in its weights.
        parts = jnp.concatenate([states.real, states.imag], -1)
        return linear("outputs", width)(parts)


class Network(nn.Module):
    """Turns rows [V, L, D + 1] of histories, or of windows, into users' vectors [B, D + 1]."""

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

        def dropped(x):
            return nn.Dropout(s.dropout, deterministic=deterministic)(x)

        def linear(features):
            return nn.Dense(features, kernel_init=_NORMAL, bias_init=_NORMAL)

        places = jnp.arange(rows.shape[1])
        begins = (
            jnp.broadcast_to(places == 0, valid.shape) if views is None else (views.sees == places)
        )
        events = jnp.where(valid[..., None], rows[..., : s.width], 0.0)
        x = nn.LayerNorm()(dropped(events))
        for _ in range(s.layers):
            x = nn.LayerNorm()(x + dropped(Recurrence()(x, valid, begins)))
            hidden = dropped(nn.gelu(linear(4 * s.width)(x)))
            x = nn.LayerNorm()(x + dropped(linear(s.width)(hidden)))
        last: Any = last_state(x, valid, views)
        return jnp.pad(last, ((0, 0), (0, 1)), constant_values=1.0)


def ranker(settings: Settings) -> SequentialRanker:
    return SequentialRanker(
        Network(settings),
        width=settings.width + 1,
        init_scale=settings.init_scale,
        loss=settings.loss,
    )
