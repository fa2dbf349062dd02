"""Starts the rows of items and words where the training log puts them, and not at random.

Users' clicked items, and the words and clicked items of searches, are the rows of one sparse
matrix; its first singular vectors are the rows of items and words at the start (PureSVD: Cremonesi
et al., RecSys 2010). So items that the same users clicked, and words that led to them, start near
one another. On small logs a model from random rows has learnt its users by heart before it knows as
much (docs/recipe.md).
"""

from __future__ import annotations

import numpy as np
import scipy.sparse

# Counts of clicks and words that are enough to find the vectors from; of more, rows are drawn.
_MOST = 30_000_000
_ITERATIONS = 4


def spectral_rows(
    clicks: scipy.sparse.csr_array,
    searches: tuple[scipy.sparse.csr_array, scipy.sparse.csr_array],
    *,
    width: int,
    scale: float,
    popularity_weight: float,
    users: bool = False,
) -> dict[str, np.ndarray]:
    """Returns the rows of items [V+1, D] and words [W+1, D] at the start, float32.

    Rows without any click or search, the padding's among them, are NaN: they stay as drawn.

    Args:
      clicks: how often users clicked items, [U+1, V+1].
      searches: items [S, V+1] and words [S, W+1] of searches.
      width: D.
      scale: standard deviation of the rows.
      popularity_weight: what the ranker multiplies an item's first coordinate by; that times the
        coordinate is the logarithm of the item's clicks, plus a constant. 0: the first coordinate
        is like the others.
      users: returns rows of users [U+1, D] too, each the mean of the rows of the items clicked, at
        the same deviation.
    """
    of_users = clicks.sign().astype(np.float32)
    items, words = searches
    size = (of_users.shape[0], words.shape[1])
    nothing = scipy.sparse.csr_array(size, dtype=np.float32)
    together = scipy.sparse.vstack(
        [scipy.sparse.hstack([of_users, nothing]), scipy.sparse.hstack([items, words])],
        format="csr",
    )
    reserved = 1 if popularity_weight else 0
    vectors = _vectors(_part(together), width - reserved, scale)
    rows = np.full((len(vectors), width), np.nan, np.float32)
    rows[:, reserved:] = vectors
    if popularity_weight:
        logs = np.log1p(np.asarray(clicks.sum(0)).ravel())
        known = slice(1, len(logs))
        rows[known, 0] = (logs[known] - logs[known].mean()) / popularity_weight
        rows[len(logs) :, 0] = 0.0
    split = clicks.shape[1]
    of_tables = {"item": rows[:split], "word": rows[split:]}
    if users:
        of_tables["user"] = _means(of_users, of_tables["item"], scale)
    for table in of_tables.values():
        table[0] = np.nan
    return of_tables


def _means(of_users: scipy.sparse.csr_array, items: np.ndarray, scale: float) -> np.ndarray:
    """Returns the mean of each user's items' rows, scaled; NaN for users without any."""
    counts = np.asarray(of_users.sum(1)).ravel()[:, None]
    rows = of_users @ np.nan_to_num(items) / np.maximum(counts, 1.0)
    spread = rows[counts[:, 0] > 0].std() if counts.any() else 0.0
    rows *= scale / spread if spread > 0.0 else 0.0
    return np.where(counts > 0, rows, np.nan).astype(np.float32)


def _part(matrix: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Returns the matrix, or as many of its rows, drawn at random, as are enough."""
    if matrix.nnz <= _MOST:
        return matrix
    order = np.random.default_rng(0).permutation(matrix.shape[0])
    counts = np.cumsum(np.diff(matrix.indptr)[order])
    return matrix[np.sort(order[: np.searchsorted(counts, _MOST)])]


def _vectors(matrix: scipy.sparse.csr_array, width: int, scale: float) -> np.ndarray:
    """Returns vectors of the columns [n, D], of standard deviation `scale`; NaN for empty ones.

    Rows and columns are divided by the square roots of their sums, so that neither users with many
    clicks nor frequent items outweigh the others, and each singular vector counts by the root of
    its value.
    """
    # sklearn takes a second to import, and only a training's start needs it.
    from sklearn.utils.extmath import randomized_svd
    from threadpoolctl import threadpool_limits

    counts = np.asarray(matrix.sum(0)).ravel()
    lengths = np.asarray(matrix.sum(1)).ravel()
    left, right = (
        scipy.sparse.diags_array((np.maximum(sums, 1.0) ** -0.5).astype(np.float32))
        for sums in (lengths, counts)
    )
    scaled = (left @ matrix @ right).tocsr()
    width_known = min(width, *scaled.shape)
    # One thread: several round otherwise, and a run would depend on the number of cores.
    with threadpool_limits(1, user_api="blas"):
        _, values, vectors = randomized_svd(scaled, width_known, n_iter=_ITERATIONS, random_state=0)
    rows = np.zeros((matrix.shape[1], width), np.float32)
    rows[:, :width_known] = vectors.T * np.sqrt(values)
    seen = counts > 0
    spread = rows[seen].std() if seen.any() else 0.0
    rows *= scale / spread if spread > 0.0 else 0.0
    rows[~seen] = np.nan
    return rows
