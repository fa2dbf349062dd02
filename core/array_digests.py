"""Digests sharded arrays, whatever way they lie on devices.

An array's digest is the sum, modulo 2^64, of every element's bits times a weight of the element's
place. So the parts of an array are digested wherever they lie and their digests add up, on any mesh
and any number of processes; zeros that fill up a table count nothing. The weight is a product of
odd pseudo-random numbers of 64 bits, one an axis (multilinear hashing: Carter and Wegman 1979,
Lemire and Kaser 2014). As an element's bits are fewer than the weight's, one changed element always
changes the digest, and other changes go unseen with a chance of about 2^-32 at most.
"""

from __future__ import annotations

import concurrent.futures
import functools
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

_MODULUS = 2**64
# The most elements of the last axes that are one: their weights fit a core's cache.
_CHUNK = 2**16
# Places of an axis whose weights share a factor: part of what a digest is, as the rest is not.
_BLOCK = 2**16
# Elements a thread takes at a time.
_PIECE = 2**22
_MOST_THREADS = 16


def parts(array: Any) -> dict[str, int]:
    """Digests each different part of an array that lies on this process's devices.

    Args:
      array: a `jax.Array`, or a NumPy array, which is one part.

    Returns:
      The digests of the parts, by where they start and end: '0:128,0:64'.
    """
    if isinstance(array, jax.Array):
        if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        shards = {_name(shard.index, array.shape): shard for shard in array.addressable_shards}
        return {
            name: digest(np.asarray(shard.data), [start for start, _ in _bounds(shard, array)])
            for name, shard in shards.items()
        }
    array = np.asarray(array)
    return {_name((slice(None),) * array.ndim, array.shape): digest(array)}


def first_copies(array: Any) -> int:
    """Digests what this process saves of an array: the parts whose first copy it holds.

    Over all processes these add up to the array's digest.
    """
    if not isinstance(array, jax.Array):
        return digest(np.asarray(array)) if not jax.process_index() else 0
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return total(
        digest(np.asarray(shard.data), [start for start, _ in _bounds(shard, array)])
        for shard in array.addressable_shards
        if shard.replica_id == 0
    )


def total(digests: Iterator[int]) -> int:
    """Adds up the digests of an array's parts."""
    return sum(digests) % _MODULUS


def _bounds(shard: Any, array: Any) -> list[tuple[int, int]]:
    return [part.indices(size)[:2] for part, size in zip(shard.index, array.shape, strict=True)]


def _name(index: Sequence[slice], shape: Sequence[int]) -> str:
    bounds = (part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
    return ",".join(f"{start}:{stop}" for start, stop in bounds)


def digest(values: np.ndarray, starts: Sequence[int] = ()) -> int:
    """Digests a part of an array.

    Args:
      values: the part, of numbers or booleans.
      starts: where it begins on each axis of the array; () for its own beginning.

    Returns:
      A number in [0, 2^64).
    """
    values = np.asarray(values)
    if not values.size:
        return 0
    bits = _bits(values)
    corner = [*starts, *[0] * (bits.ndim - len(starts))]
    pieces = list(_pieces(bits, corner))
    threads = min(_MOST_THREADS, len(pieces), _cores())
    if threads < 2:
        return total(_sum(*piece) for piece in pieces)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return total(pool.map(lambda piece: _sum(*piece), pieces))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _bits(values: np.ndarray) -> np.ndarray:
    """Returns the bits of every element as whole numbers of 32 bits at most; 64 become two."""
    shape, size = values.shape, values.dtype.itemsize
    values = np.ascontiguousarray(values).reshape(-1)
    if size > 4:
        return values.view(np.uint32).reshape(*shape, size // 4)
    return values.view(f"u{size}").reshape(shape or (1,))


def _pieces(bits: np.ndarray, corner: list[int]) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Cuts along the first axis, and the last one to the length of a chunk."""
    for column in range(0, bits.shape[-1], _CHUNK):
        part = bits[..., column : column + _CHUNK]
        at = [*corner[:-1], corner[-1] + column]
        rows = max(1, _PIECE * len(part) // part.size)
        if part.ndim == 1:
            rows = len(part)
        for row in range(0, len(part), rows):
            yield part[row : row + rows], [at[0] + row, *at[1:]]


def _sum(bits: np.ndarray, corner: list[int]) -> int:
    """Returns the digest of a piece whose last axis fits a chunk."""
    sizes = zip(bits.shape, corner, strict=True)
    weights = [_weights(axis, start, start + n) for axis, (n, start) in enumerate(sizes)]
    # As many of the last axes as fit a chunk are one axis, and so are all before them.
    split = bits.ndim - 1
    while split and math.prod(bits.shape[split - 1 :]) <= _CHUNK:
        split -= 1
    inner = _products(weights[split:])
    outer = _products(weights[:split])
    flat = bits.reshape(len(outer), len(inner))
    # einsum widens a buffer at a time, and is fast along rows that are long.
    if len(inner) >= 16:
        return int(np.dot(np.einsum("ij,j->i", flat, inner, dtype=np.uint64), outer))
    sums = [np.einsum("i,i->", column, outer, dtype=np.uint64) for column in flat.T]
    return int(np.dot(np.array(sums), inner))


def _products(weights: list[np.ndarray]) -> np.ndarray:
    """Returns the weights of the elements of some axes, in their order, flat."""
    return functools.reduce(np.multiply.outer, weights, np.ones((), np.uint64)).reshape(-1)


def _weights(axis: int, start: int, stop: int) -> np.ndarray:
    """Returns odd numbers uint64 [stop - start] for the places of an axis.

    Each is a number of the place within its block times a number of the block.
    """
    low, blocks = _low(axis), range(start // _BLOCK, -(-stop // _BLOCK))
    parts = [
        low[max(start - block * _BLOCK, 0) : stop - block * _BLOCK] * _high(axis, block)
        for block in blocks
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@functools.cache
def _low(axis: int) -> np.ndarray:
    return _odd(np.arange(_BLOCK, dtype=np.uint64) + np.uint64((2 * axis) << 48))


@functools.cache
def _high(axis: int, block: int) -> np.uint64:
    return _odd(np.array([block + ((2 * axis + 1) << 48)], np.uint64))[0]


def _odd(numbers: np.ndarray) -> np.ndarray:
    """Returns pseudo-random odd numbers of 64 bits, by SplitMix64."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)
