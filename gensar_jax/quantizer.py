"""Quantizes residuals over shared and specific codebooks: GenSAR (RecSys 2025) 3.2.2, Eq. 3-6, 9.

Axis letters: B items, L levels, K codes, D width of a level, d width of one source's latents, N
sources.
Codebooks are a dict: 'shared' float32 [L_m, K, N*d], and one float32 [L_n, K, d] for every source.
Either number of levels may be 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

SHARED = "shared"
# Where the gradient of Eq. 9's alpha term may flow: through the residuals of every level, or of the
# first level only, as the released code does.
RESIDUAL_GRADIENTS = ("every_level", "as_released")
REDUCTIONS = ("mean", "sum")
# Scaling vectors are absorbed into the potentials this often; between two absorptions no factor can
# grow beyond (B K)^5, which float32 holds for batches of thousands.
_ABSORB_EVERY = 5


class Balance(NamedTuple):
    """Holds Sinkhorn's settings: `epsilon` in units of half the range of the distances."""

    epsilon: float
    iterations: int


class Levels(NamedTuple):
    """Holds what one stack of codebooks made of its start.

    Attributes:
      codes: int32 [B, L].
      inputs: float32 [L, B, D], the residual that each level was given, r_{i-1}.
      chosen: float32 [L, B, D], the code embeddings e_{c_i}.
      residual: float32 [B, D], what is left after the last level.
    """

    codes: jax.Array
    inputs: jax.Array
    chosen: jax.Array
    residual: jax.Array


def squared_distances(points: jax.Array, codebook: jax.Array) -> jax.Array:
    """Returns ||r - e_k||^2 of Eq. 3, float32 [B, K], from points [B, D] and a codebook [K, D]."""
    # Codes must not depend on the accelerator's reduced matmul precision.
    product = jnp.matmul(points, codebook.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.square(points).sum(-1)[:, None] + jnp.square(codebook).sum(-1)
    return squares - 2.0 * product


def sinkhorn_assign(distances: jax.Array, balance: Balance) -> jax.Array:
    """Codes under the constraint that all K codes weigh the same.

    Entropic optimal transport between B points and K codes of equal weight, of which each point
    takes its largest entry; distances are first brought to [-1, 1], as in LC-Rec (ICDE 2024). The
    kernel is kept in float32 by absorbing the scaling vectors into potentials (Schmitzer 2019).

    Args:
      distances: float32 [B, K].

    Returns:
      int32 [B].
    """
    points, codes = distances.shape
    lowest, highest = distances.min(), distances.max()
    cost = (distances - (lowest + highest) / 2) / ((highest - lowest) / 2 + 1e-5)
    cost = cost / balance.epsilon
    # From here every row and every column of the kernel holds a 1.
    of_points = cost.min(1)
    of_codes = (cost - of_points[:, None]).min(0)

    def absorb(number, potentials):
        of_points, of_codes = potentials
        kernel = jnp.exp(of_points[:, None] + of_codes - cost)
        scale_codes = jnp.ones(codes)
        scale_points = jnp.ones(points)
        for step in range(_ABSORB_EVERY):
            fresh_points = 1.0 / (points * (kernel @ scale_codes))
            fresh_codes = 1.0 / (codes * (fresh_points @ kernel))
            runs = number * _ABSORB_EVERY + step < balance.iterations
            scale_points = jnp.where(runs, fresh_points, scale_points)
            scale_codes = jnp.where(runs, fresh_codes, scale_codes)
        return of_points + jnp.log(scale_points), of_codes + jnp.log(scale_codes)

    rounds = -(-balance.iterations // _ABSORB_EVERY)
    _, of_codes = jax.lax.fori_loop(0, rounds, absorb, (of_points, of_codes))
    return jnp.argmax(of_codes - cost, axis=1).astype(jnp.int32)


def quantize_levels(
    start: jax.Array,
    codebooks: jax.Array,
    *,
    residual_gradient: str = "every_level",
    balance_last: Balance | None = None,
) -> Levels:
    """Computes Eq. 3 or 4: nearest codes of the residuals, level after level.

    Args:
      start: float32 [B, D], r_0.
      codebooks: float32 [L, K, D].
      residual_gradient: 'every_level': r_i = r_{i-1} - sg(e), so that Eq. 9's alpha term reaches
        `start` from every level and no earlier codebook; 'as_released': from the first level only.
      balance_last: Sinkhorn of the last level; None takes the nearest code there too.
    """
    codes, inputs, chosen = [], [], []
    residual = start
    for level, codebook in enumerate(codebooks):
        distances = squared_distances(*jax.lax.stop_gradient((residual, codebook)))
        if balance_last is not None and level == len(codebooks) - 1:
            code = sinkhorn_assign(distances, balance_last)
        else:
            code = jnp.argmin(distances, axis=1).astype(jnp.int32)
        embedding = codebook[code]
        codes.append(code)
        inputs.append(residual)
        chosen.append(embedding)
        residual = residual - jax.lax.stop_gradient(embedding)
        if residual_gradient == "as_released":
            residual = jax.lax.stop_gradient(residual)
    if not codes:
        none = jnp.zeros((0, *start.shape), start.dtype)
        return Levels(jnp.zeros((len(start), 0), jnp.int32), none, none, start)
    return Levels(jnp.stack(codes, 1), jnp.stack(inputs), jnp.stack(chosen), residual)


def quantize(
    latents: jax.Array,
    codebooks: Mapping[str, jax.Array],
    sources: Sequence[str],
    *,
    residual_gradient: str = "every_level",
    balance_last: Balance | None = None,
) -> dict[str, Levels]:
    """Quantizes by shared levels over all latents, then by each source's own levels over its part
    of the residual.

    Args:
      latents: float32 [B, N*d], [z_s; z_c] in the order of `sources`.
      balance_last: Sinkhorn of the last specific level of every source.

    Returns:
      `Levels` under 'shared' and under each source.
    """
    shared = quantize_levels(latents, codebooks[SHARED], residual_gradient=residual_gradient)
    parts = jnp.split(shared.residual, len(sources), axis=1)
    levels = {SHARED: shared}
    for source, part in zip(sources, parts, strict=True):
        levels[source] = quantize_levels(
            part,
            codebooks[source],
            residual_gradient=residual_gradient,
            balance_last=balance_last,
        )
    return levels


def quantized_latents(levels: Mapping[str, Levels], sources: Sequence[str]) -> jax.Array:
    """Returns Eq. 6: [z_s_hat; z_c_hat], float32 [B, N*d]."""
    specific = jnp.concatenate([levels[source].chosen.sum(0) for source in sources], axis=1)
    return levels[SHARED].chosen.sum(0) + specific


def identifiers(levels: Mapping[str, Levels], sources: Sequence[str]) -> dict[str, jax.Array]:
    """Returns Eq. 5: for each source int32 [B, L_m + L_n], shared codes first."""
    shared = levels[SHARED].codes
    return {source: jnp.concatenate([shared, levels[source].codes], 1) for source in sources}


def rq_loss(levels: Mapping[str, Levels], *, alpha: float, reduction: str = "mean") -> jax.Array:
    """Returns Eq. 9, the mean over the batch.

    Args:
      reduction: 'sum' over a level's dimensions and over all levels of all parts, as printed;
        'mean' over both, as in the released code.

    Returns:
      A scalar; 0 without any level.
    """
    reduce = jnp.sum if reduction == "sum" else jnp.mean
    losses = []
    for part in levels.values():
        for latent, chosen in zip(part.inputs, part.chosen, strict=True):
            code_term = jnp.square(jax.lax.stop_gradient(latent) - chosen)
            commitment = jnp.square(latent - jax.lax.stop_gradient(chosen))
            losses.append(reduce(code_term + alpha * commitment, axis=-1).mean())
    return reduce(jnp.stack(losses)) if losses else jnp.zeros(())


def use_counts(codes: jax.Array, num_codes: int) -> jax.Array:
    """Counts how often each code occurs, int32 [L, K], in codes [B, L]."""
    return jax.vmap(lambda column: jnp.bincount(column, length=num_codes), in_axes=1)(codes)


def usage(counts: jax.Array) -> jax.Array:
    """Returns the share of codes that occur, float32 [L]."""
    return (counts > 0).mean(-1)


def perplexity(counts: jax.Array) -> jax.Array:
    """Returns exp of the entropy of the codes, float32 [L]; K where all are equally frequent."""
    shares = counts / counts.sum(-1, keepdims=True)
    return jnp.exp(-jnp.where(shares > 0, shares * jnp.log(jnp.maximum(shares, 1e-30)), 0).sum(-1))


def revive(
    key: jax.Array, codebooks: jax.Array, levels: Levels, idle: jax.Array, *, after: int
) -> tuple[jax.Array, jax.Array]:
    """Moves codes that no item took for `after` batches onto residuals of the batch.

    As SoundStream (2021) does; without it a code that starts far from the data stays unused.

    Args:
      codebooks: float32 [L, K, D].
      levels: this batch's assignment.
      idle: int32 [L, K], batches since a code was last taken.

    Returns:
      The codebooks and `idle` after this batch; a revived code counts as just taken.
    """
    num_levels, num_codes, _ = codebooks.shape
    taken = use_counts(levels.codes, num_codes) > 0
    idle = jnp.where(taken, 0, idle + 1)
    dead = idle >= after
    rows = jax.random.randint(key, (num_levels, num_codes), 0, levels.codes.shape[0])
    residuals = jnp.take_along_axis(levels.inputs, rows[..., None], axis=1)
    moved = jnp.where(dead[..., None], jax.lax.stop_gradient(residuals), codebooks)
    return moved, jnp.where(dead, 0, idle)
