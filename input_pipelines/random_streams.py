"""Draws random numbers without state, as functions of keys, so that any batch can be made alone."""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ROUNDS = 6


def mix(values: np.ndarray) -> np.ndarray:
    """Mixes bits by the finaliser of SplitMix64: a bijection of uint64 that looks random."""
    with np.errstate(over="ignore"):
        z = np.asarray(values, np.uint64) + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def keys(*parts: int | np.ndarray) -> np.ndarray:
    """Returns one uint64 key from several integers or arrays of them; their order matters."""
    key = np.zeros((), np.uint64)
    for part in parts:
        key = mix(key ^ mix(np.asarray(part).astype(np.uint64)))
    return key


def keys_of_rows(ends: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns one uint64 key a ragged row, from its integers in their order.

    Args:
      ends: int64 [n+1]; row i is values[ends[i]:ends[i+1]].
    """
    places = np.arange(len(values)) - np.repeat(ends[:-1], np.diff(ends))
    sums = np.zeros(len(values) + 1, np.uint64)
    with np.errstate(over="ignore"):
        np.cumsum(keys(values, places), out=sums[1:])
        return sums[ends[1:]] - sums[ends[:-1]]


def below(key: np.ndarray, count: int, limit: int) -> np.ndarray:
    """Draws `count` integers in [0, limit) for each key [n], int64 [n, count].

    The multiplication maps 32 random bits to the range; its bias is below limit / 2^32.
    """
    with np.errstate(over="ignore"):
        draws = mix(key[:, None] + np.arange(count, dtype=np.uint64)[None] * _GOLDEN)
    return (((draws >> np.uint64(32)) * np.uint64(limit)) >> np.uint64(32)).astype(np.int64)


def exponentials(key: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Draws a standard exponential variable for each key [n] and number [m], float64 [n, m].

    The variable of a key and a number does not depend on what else is asked for.
    """
    with np.errstate(over="ignore"):
        draws = mix(key[:, None] + numbers.astype(np.uint64)[None] * _GOLDEN)
    # 53 bits in the middle of their cells: neither 0, whose logarithm is infinite, nor 1.
    return -np.log(((draws >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)


def permutation(n: int, key: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Returns where a random permutation of [0, n) sends `positions`, without building it.

    A Feistel network permutes the next power of four; walking its cycle until the value falls
    below n makes it a permutation of [0, n).

    Args:
      n: size.
      key: uint64, a scalar or one for each position: positions of different keys (epochs) may
        share a call.
      positions: int64 [m] in [0, n).

    Returns:
      int64 [m].
    """
    half_bits = max(1, (max(n - 1, 1).bit_length() + 1) // 2)
    half = np.uint64(half_bits)
    low = np.uint64((1 << half_bits) - 1)
    key = np.broadcast_to(np.asarray(key, np.uint64), np.shape(positions))

    def encrypt(values, round_keys):
        left, right = values >> half, values & low
        for round_key in round_keys:
            left, right = right, left ^ (mix(right ^ round_key) & low)
        return (left << half) | right

    with np.errstate(over="ignore"):
        round_keys = mix(key + np.arange(_ROUNDS, dtype=np.uint64)[:, None])
        result = encrypt(np.asarray(positions).astype(np.uint64), round_keys)
        outside = np.flatnonzero(result >= n)
        while len(outside):
            result[outside] = encrypt(result[outside], round_keys[:, outside])
            outside = outside[result[outside] >= n]
    return result.astype(np.int64)
