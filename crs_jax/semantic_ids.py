"""Semantic ids of items: residual k-means, Eq. 1 of CRS, and a de-duplication level.

Axis letters: V items, L levels of k-means (an id has L + 1 codes), N codes of a level, D width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.errors import UserError

_FIT_ITEMS = 50_000
_ITERATIONS = 50
FILE = "semantic_ids.npz"
# Distances held at once.
_CHUNK = 2**24


def _nearest(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(code int [V], squared distance [V]) of the nearest centre, the first of equals."""
    codes, distances = np.empty(len(points), np.int64), np.empty(len(points))
    squares = np.square(centres).sum(1)
    step = max(1, _CHUNK // len(centres))
    for start in range(0, len(points), step):
        part = points[start : start + step]
        found = squares - 2.0 * part @ centres.T
        codes[start : start + step] = chosen = found.argmin(1)
        distances[start : start + step] = np.square(part - centres[chosen]).sum(1)
    return codes, distances


def _too_few(size: int, level: int, found: str) -> UserError:
    return UserError(
        f"expected at least {size} different vectors for the codes of level {level + 1}, found "
        f"{found}; lower config.semantic_ids.codes"
    )


def _level(points: np.ndarray, size: int, seed: int, level: int) -> tuple[np.ndarray, np.ndarray]:
    """(centres [N, D], codes [V]) of one level, every code used."""
    from sklearn.cluster import KMeans  # slow to import

    distinct = len(np.unique(points, axis=0))
    if distinct < size:
        raise _too_few(size, level, str(distinct))
    rng = np.random.default_rng((seed, level))
    fitted = points[np.sort(rng.choice(len(points), min(_FIT_ITEMS, len(points)), replace=False))]
    kmeans = KMeans(size, n_init=1, max_iter=_ITERATIONS, random_state=seed * 97 + level)
    centres = kmeans.fit(fitted).cluster_centers_
    given: set[int] = set()
    while True:
        codes, distances = _nearest(points, centres)
        counts = np.bincount(codes, minlength=size)
        empty = np.flatnonzero(counts == 0)
        if not len(empty):
            return centres, codes
        if given.intersection(empty.tolist()):
            # It has lost its point to a code on a point that rounding cannot tell from it.
            raise _too_few(size, level, "fewer up to rounding")
        # An empty code takes the point that is farthest from its own among those with company.
        distances[counts[codes] == 1] = -1.0
        centres[empty[0]] = points[distances.argmax()]
        given.add(int(empty[0]))


def _numbers_within(prefixes: np.ndarray) -> np.ndarray:
    """0, 1, ... for the rows of each distinct prefix, in the order of the rows."""
    _, group = np.unique(prefixes, axis=0, return_inverse=True)
    group = group.ravel()
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    starts = np.searchsorted(ordered, ordered)
    numbers = np.empty(len(group), np.int64)
    numbers[order] = np.arange(len(group)) - starts
    return numbers


@dataclasses.dataclass(frozen=True)
class SemanticIds:
    """The ids of a catalogue.

    Attributes:
      codes: int32 [V, L+1], of items 1..V; the last code tells apart items that share the others.
      codebooks: float64 [N, D], one a level.
      last_codes: how many codes the last level has.
    """

    codes: np.ndarray
    codebooks: tuple[np.ndarray, ...]
    last_codes: int

    @property
    def levels(self) -> tuple[int, ...]:
        """Codes of each level, the last one too."""
        return (*(len(book) for book in self.codebooks), self.last_codes)

    @property
    def hash(self) -> str:
        """16 hex digits over the codes and the levels."""
        content = json.dumps(self.levels).encode() + np.ascontiguousarray(self.codes).tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def with_items(self, vectors: np.ndarray) -> SemanticIds:
        """The ids with further items, whose codes are the nearest; old ids stay as they are.

        Args:
          vectors: float [V', D], of the new items.

        Raises:
          UserError: more items share their first codes than the last level can tell apart.
        """
        added = _codes_of(vectors, self.codebooks)
        return _with_last(np.concatenate([self.codes[:, :-1], added]), self.codebooks, self)

    def save(self, folder: str) -> None:
        """Writes the ids whole or not at all."""
        path = os.path.join(folder, FILE)
        partial = f"{path}.{os.getpid()}.partial.npz"
        arrays: dict[str, Any] = {"codes": self.codes, "last_codes": self.last_codes}
        arrays |= {f"codebook_{number}": book for number, book in enumerate(self.codebooks)}
        np.savez_compressed(partial, **arrays)
        os.replace(partial, path)


def _codes_of(vectors: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    rest, found = np.asarray(vectors, np.float64), []
    for book in codebooks:
        codes, _ = _nearest(rest, book)
        rest = rest - book[codes]
        found.append(codes)
    return np.stack(found, 1)


def _with_last(
    prefixes: np.ndarray, codebooks: tuple[np.ndarray, ...], before: SemanticIds | int
) -> SemanticIds:
    """The ids of prefixes [V, L]; a row's last code is its number among equal rows before it."""
    last = _numbers_within(prefixes)
    needed = int(last.max()) + 1
    size = before if isinstance(before, int) else before.last_codes
    size = size or needed
    if needed > size:
        raise UserError(
            f"expected at most {size} items of the same codes, found {needed}; raise "
            "config.semantic_ids.last_codes or config.semantic_ids.codes"
        )
    codes = np.concatenate([prefixes, last[:, None]], 1).astype(np.int32)
    return SemanticIds(codes, codebooks, size)


def fit(vectors: np.ndarray, sizes: Sequence[int], *, last_codes: int, seed: int) -> SemanticIds:
    """Ids of items by Eq. 1: k-means of the vectors, then of what each level leaves.

    Args:
      vectors: float [V, D].
      sizes: N of each level.
      last_codes: of the de-duplication level; 0 takes as many as these items need, more leave room
        for new items.
      seed: of k-means.

    Raises:
      UserError: fewer different vectors than codes, or more equal ids than `last_codes`.
    """
    rest = np.asarray(vectors, np.float64)
    books, codes = [], []
    for level, size in enumerate(sizes):
        centres, found = _level(rest, size, seed, level)
        books.append(centres)
        codes.append(found)
        rest = rest - centres[found]
    return _with_last(np.stack(codes, 1), tuple(books), last_codes)


def load(folder: str) -> SemanticIds:
    """The ids that `save` has left in a folder.

    Raises:
      UserError: none there that can be read.
    """
    path = os.path.join(folder, FILE)
    try:
        with np.load(path) as arrays:
            levels = arrays["codes"].shape[1] - 1
            books = tuple(arrays[f"codebook_{number}"] for number in range(levels))
            return SemanticIds(arrays["codes"], books, int(arrays["last_codes"]))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"expected semantic ids at {path}, found none that can be read "
            f"({type(error).__name__}); train again in another --workdir"
        ) from None
