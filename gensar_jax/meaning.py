"""Measures whether codes mean something: random unique codes never collide, so collisions say
little.

Two measures against item vectors, and residual k-means of the same vectors to hold them against.
Axis letters: V items, L levels, K codes, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.stats

from gensar_jax.quantizer import SHARED

NEIGHBOURS = 10
_PAIRS = 200_000
_QUERIES = 5_000
_COSINES = 2**25  # at once
_FIT_ITEMS = 50_000


def _unit(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of length 1, and the numbers of the rows that have a direction."""
    norms = np.linalg.norm(vectors, axis=1)
    return vectors / np.maximum(norms, 1e-12)[:, None], np.flatnonzero(norms > 0)


def shared_prefix(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Counts how many codes agree from the first on, int [P], of identifiers [P, L] and [P, L]."""
    return np.cumprod(first == second, axis=1).sum(1)


def prefix_correlation(codes: np.ndarray, vectors: np.ndarray, *, seed: int = 0) -> float:
    """Returns the Spearman correlation of shared-prefix length with cosine over 200,000 random
    pairs of items.

    Args:
      codes: int [V, L].
      vectors: float [V, D]; items whose row is 0 are left out.

    Returns:
      From -1 to 1; 0 where every pair shares as much as every other, or is as near.
    """
    unit, chosen = _unit(vectors)
    if len(chosen) < 2:
        return 0.0
    rng = np.random.default_rng(seed)
    first, second = rng.choice(chosen, (2, _PAIRS))
    first, second = first[first != second], second[first != second]
    lengths = shared_prefix(codes[first], codes[second])
    cosines = np.einsum("pd,pd->p", unit[first], unit[second])
    # A constant's correlation is no number.
    if any(len(values) == 0 or (values == values[0]).all() for values in (lengths, cosines)):
        return 0.0
    return float(scipy.stats.spearmanr(lengths, cosines).statistic)


def neighbours_kept(codes: np.ndarray, vectors: np.ndarray, *, seed: int = 0) -> float:
    """Returns the share of the 10 nearest neighbours by cosine that have an item's first code.

    Over 5,000 random items, or all where there are fewer; items whose row is 0 are left out. It is
    0 of fewer than two items.
    """
    unit, chosen = _unit(vectors)
    if len(chosen) < 2:
        return 0.0
    rng = np.random.default_rng(seed)
    count = min(NEIGHBOURS, len(chosen) - 1)
    queries = rng.choice(chosen, min(_QUERIES, len(chosen)), replace=False)
    shares = []
    chunk = max(1, _COSINES // len(vectors))
    for start in range(0, len(queries), chunk):
        rows = queries[start : start + chunk]
        cosines = unit[rows] @ unit[chosen].T
        cosines[rows[:, None] == chosen] = -np.inf
        nearest = chosen[np.argpartition(-cosines, count - 1, axis=1)[:, :count]]
        shares.append((codes[nearest, 0] == codes[rows, :1]).mean(1))
    return float(np.concatenate(shares).mean())


def residual_kmeans_codes(
    vectors: Mapping[str, np.ndarray],
    *,
    shared_levels: int,
    specific_levels: int,
    num_codes: int,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Identifiers [V, L_m + L_n] by source from the vectors themselves, by scikit-learn's k-means.

    The joint identifiers' structure without a network: shared levels over the concatenation, then
    levels over each source's part of the residual. It is fitted to at most 50,000 random items.

    Args:
      vectors: by source, float [V, D]; rows of length 1 or 0.
    """
    parts, residual = _levels(
        np.concatenate(list(vectors.values()), 1), shared_levels, num_codes, seed
    )
    ends = np.cumsum([rows.shape[1] for rows in vectors.values()])[:-1]
    codes = {}
    for number, (source, rest) in enumerate(zip(vectors, np.split(residual, ends, axis=1))):
        own, _ = _levels(rest, specific_levels, num_codes, seed + 1 + number)
        codes[source] = np.stack([*parts, *own], 1).astype(np.int32)
    return codes


def _levels(
    points: np.ndarray, levels: int, num_codes: int, seed: int
) -> tuple[list[np.ndarray], np.ndarray]:
    from sklearn.cluster import KMeans  # slow to import

    rng = np.random.default_rng(seed)
    fitted = rng.choice(len(points), min(_FIT_ITEMS, len(points)), replace=False)
    labels = []
    for level in range(levels):
        model = KMeans(num_codes, n_init=1, max_iter=20, random_state=seed + 100 * level)
        labels.append(model.fit(points[fitted]).predict(points))
        points = points - model.cluster_centers_[labels[-1]]
    return labels, points


def measure(codes: Mapping[str, np.ndarray], vectors: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Takes both measures of each source's identifiers against that source's vectors, by full name.

    Of two sources also against the concatenation of both, which is what shared codes are of.
    """
    values = {}
    for source, rows in vectors.items():
        values[f"prefix_correlation/{source}"] = prefix_correlation(codes[source], rows)
        values[f"neighbours_kept/{source}"] = neighbours_kept(codes[source], rows)
    if len(vectors) > 1:
        both, first = np.concatenate(list(vectors.values()), 1), next(iter(vectors))
        values[f"prefix_correlation/{SHARED}"] = prefix_correlation(codes[first], both)
        values[f"neighbours_kept/{SHARED}"] = neighbours_kept(codes[first], both)
    return values
