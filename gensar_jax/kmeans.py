"""Fits k-means, where codebooks start: k-means++ (Arthur and Vassilvitskii 2007), then Lloyd.

Axis letters: P points, K centres, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from gensar_jax.quantizer import SHARED, squared_distances


def _seeds(key: jax.Array, points: jax.Array, num_centres: int) -> jax.Array:
    """Draws k-means++'s seeds, each in proportion to its squared distance to the seeds before."""
    first_key, rest_key = jax.random.split(key)
    first = points[jax.random.randint(first_key, (), 0, len(points))]
    centres = jnp.zeros((num_centres, points.shape[1]), points.dtype).at[0].set(first)
    nearest = jnp.square(points - first).sum(-1)

    def add(number, carry):
        centres, nearest = carry
        weights = jnp.cumsum(nearest)
        drawn = jax.random.uniform(jax.random.fold_in(rest_key, number)) * weights[-1]
        chosen = points[jnp.minimum(jnp.searchsorted(weights, drawn), len(points) - 1)]
        nearest = jnp.minimum(nearest, jnp.square(points - chosen).sum(-1))
        return centres.at[number].set(chosen), nearest

    return jax.lax.fori_loop(1, num_centres, add, (centres, nearest))[0]


@functools.partial(jax.jit, static_argnames=("num_centres", "iterations"))
def kmeans(key: jax.Array, points: jax.Array, num_centres: int, iterations: int) -> jax.Array:
    """Centres float32 [K, D] of points [P, D]; a centre that loses all points stays in place."""

    def move(_, centres):
        nearest = jnp.argmin(squared_distances(points, centres), axis=1)
        counts = jnp.bincount(nearest, length=num_centres)[:, None]
        sums = jax.ops.segment_sum(points, nearest, num_centres)
        return jnp.where(counts > 0, sums / jnp.maximum(counts, 1), centres)

    return jax.lax.fori_loop(0, iterations, move, _seeds(key, points, num_centres))


def residual_kmeans(
    key: jax.Array, points: jax.Array, *, levels: int, num_centres: int, iterations: int
) -> tuple[jax.Array, jax.Array]:
    """Fits k-means to the points, then to what each level leaves: ([L, K, D], residuals [P, D])."""
    codebooks = []
    for level in range(levels):
        centres = kmeans(jax.random.fold_in(key, level), points, num_centres, iterations)
        points = points - centres[jnp.argmin(squared_distances(points, centres), axis=1)]
        codebooks.append(centres)
    if not codebooks:
        return jnp.zeros((0, num_centres, points.shape[1]), points.dtype), points
    return jnp.stack(codebooks), points


def start_codebooks(
    key: jax.Array,
    latents: jax.Array,
    sources: Sequence[str],
    *,
    shared_levels: int,
    specific_levels: int,
    num_codes: int,
    iterations: int,
) -> Mapping[str, jax.Array]:
    """Codebooks as `gensar_jax.quantizer` reads them, from latents [P, N*d] by residual k-means."""
    keys = jax.random.split(key, 1 + len(sources))
    settings = {"num_centres": num_codes, "iterations": iterations}
    shared, residual = residual_kmeans(keys[0], latents, levels=shared_levels, **settings)
    codebooks = {SHARED: shared}
    for number, part in enumerate(jnp.split(residual, len(sources), axis=1)):
        codebooks[sources[number]] = residual_kmeans(
            keys[1 + number], part, levels=specific_levels, **settings
        )[0]
    return codebooks
