"""GRU4Rec: Session-based Recommendations with Recurrent Neural Networks (Hidasi et al., ICLR 2016).

A GRU over the clicked items; its last state, projected, scores items by dot product. The paper
trains with pairwise ranking losses over the items of a mini-batch; here the losses are those of
the other baselines (`loss`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.settings import Count, Positive, Rate
from core.settings import Settings as Checked
from lcrsr.attention import last_valid
from lcrsr.baselines.sequence import SequentialRanker
from lcrsr.losses import OfVectors
from lcrsr.views import Views


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """Holds sizes, dropout, and the loss, of `losses.LOSSES`."""

    width: Count
    hidden: Count
    dropout: Rate
    init_scale: Positive
    loss: OfVectors


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
        x = nn.Dropout(s.dropout, deterministic=deterministic)(rows)
        cell = nn.GRUCell(s.hidden)
        if views is not None:
            # The state goes on over a whole window, whose first event it begins anew at.
            begins = views.sees == jnp.arange(rows.shape[1])
            of_rows = _from_beginnings(cell, x, begins)
            seen = views.of_targets(valid)
            last = jnp.where(seen.any(-1)[:, None], last_valid(of_rows, seen), 0.0)
            return nn.Dense(s.width)(last)
        # A recurrent state has no mask: padding rows go behind the events.
        order = jnp.argsort(~valid, axis=1, stable=True)
        x = jnp.take_along_axis(x, order[..., None], 1)
        valid = jnp.take_along_axis(valid, order, 1)
        states: Any = nn.RNN(cell)(x)
        last = jnp.where(valid.any(-1)[:, None], last_valid(states, valid), 0.0)
        return nn.Dense(s.width)(last)


def _from_beginnings(cell: nn.GRUCell, x: jax.Array, begins: jax.Array) -> jax.Array:
    """Returns the states [V, L, H] of a cell over x [V, L, D], from zero where `begins` [V, L]."""

    def step(cell, state, inputs):
        row, begins = inputs
        return cell(jnp.where(begins[:, None], 0.0, state), row)

    scan: Any = nn.scan(
        step, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1
    )
    start = jnp.zeros((len(x), cell.features), x.dtype)
    return scan(cell, start, (x, begins))[1]


def ranker(settings: Settings) -> SequentialRanker:
    return SequentialRanker(
        Network(settings),
        width=settings.width,
        init_scale=settings.init_scale,
        loss=settings.loss,
    )
