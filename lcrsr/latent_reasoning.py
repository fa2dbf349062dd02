"""Reasons latently across both sides, Eq. 2-7: a `jax.lax.scan` over steps, both sides at once.

The histories' rows stay outside the scan; the carry holds only the K new rows of each side and
layer, zero until their step.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from lcrsr import attention
from lcrsr.history_encoder import Dropout, LayerWeights, SideHistory, add_and_norm, apply_ffn

SELF_CONTEXTS = ("symmetric", "printed")


class SideWeights(NamedTuple):
    """Holds one side's layers and step positions P~ [K, D]."""

    layers: tuple[LayerWeights, ...]
    step_positions: jax.Array


@flax.struct.dataclass
class States:
    """Holds h^(1..K) of both sides, [B, K, D]; step k is row k - 1."""

    rec: jax.Array
    search: jax.Array


def final_state(states: jax.Array, start: jax.Array, active_steps: jax.Array) -> jax.Array:
    """Returns h^(active) [B, D] from states [B, K, D]; h^(0) if no step is active.

    Args:
      active_steps: int32, or [B, 1], a number a user.
    """
    every = jnp.concatenate([start[:, None], states], 1)
    if jnp.ndim(active_steps) == 0:
        return jnp.take(every, active_steps, axis=1)
    return jnp.take_along_axis(every, active_steps[..., None], 1)[:, 0]


def reason(
    rec: SideWeights,
    search: SideWeights,
    rec_history: SideHistory,
    search_history: SideHistory,
    rec_start: jax.Array,
    search_start: jax.Array,
    *,
    cross: bool,
    heads: int,
    block: str,
    self_context: str,
    dropout: Dropout,
) -> States:
    """Computes Eq. 2-6 for every step.

    Step k reads e_hat^(k) = h^(k-1) + P~[k] (Eq. 2); its self-attention sees the side's inputs
    and its reasoning rows up to k (Eq. 3, 6); its cross-attention sees the other side's (Eq. 4,
    5), where both sides come from step k - 1. A side with an empty history offers the other an
    empty context. Eq. 5 prints the search context in the recommendation's self-attention, against
    its own text ("symmetric"): `self_context='printed'` follows the print.

    Args:
      rec_start, search_start: h^(0) [B, D], noised or not.
      cross: False leaves the cross-attention out (the counterpart of Eq. 9).

    Returns:
      States of [B, K, D] with K from the weights; K = 0 gives empty arrays.
    """
    steps = rec.step_positions.shape[0]
    b, d = rec_start.shape
    if steps == 0:
        empty = jnp.zeros((b, 0, d), rec_start.dtype)
        return States(empty, empty)
    histories = (rec_history, search_history)
    sides = (rec, search)
    nonempty = tuple(h.mask.any(-1)[:, None] for h in histories)
    depth = len(rec.layers)
    no_rows = tuple(
        tuple(jnp.zeros((b, steps, d), rec_start.dtype) for _ in sides) for _ in range(depth)
    )

    def own_context(side, layer, rows, upto):
        # As printed, recommendation reads the search context in its self-attention.
        source = 1 if self_context == "printed" and side == 0 else side
        contexts = (histories[source].inputs[layer], rows[layer][source])
        if source != side:
            masks = (histories[source].mask, upto & nonempty[source])
        else:
            masks = (histories[source].mask, upto)
        return contexts, masks

    def step(carry, k):
        states, rows = carry
        upto = jnp.broadcast_to(jnp.arange(steps) <= k, (b, steps))
        x = tuple(h + s.step_positions[k] for h, s in zip(states, sides, strict=True))
        drop = dropout.at(k)
        rows = list(rows)
        for layer in range(depth):
            rows[layer] = tuple(r.at[:, k].set(e) for r, e in zip(rows[layer], x, strict=True))
            outputs = []
            for side, weights in enumerate(sides):
                w, other = weights.layers[layer], 1 - side
                drop_here = drop.at(4 * layer + 2 * side)
                contexts, masks = own_context(side, layer, rows, upto)
                attended = attention.attend(w.msa, x[side], contexts, masks, heads)
                f = add_and_norm(block, w.msa_norm, x[side], drop_here.at(0)(attended))
                if cross:
                    crossed = attention.attend(
                        w.mca,
                        f,
                        (histories[other].inputs[layer], rows[layer][other]),
                        (histories[other].mask, upto & nonempty[other]),
                        heads,
                    )
                    f = add_and_norm(block, w.mca_norm, f, drop_here.at(1)(crossed))
                outputs.append(apply_ffn(block, w, f, drop_here.at(2)))
            x = tuple(outputs)
        return (x, tuple(rows)), x

    start = ((rec_start, search_start), no_rows)
    _, (rec_states, search_states) = jax.lax.scan(step, start, jnp.arange(steps), unroll=True)
    return States(jnp.moveaxis(rec_states, 0, 1), jnp.moveaxis(search_states, 0, 1))
