"""Makes semantic ids of items: residual k-means, Eq. 1 of CRS, and a de-duplication level.

Axis letters: V items, L levels of k-means (an id has L + 1 codes), N codes of a level, D width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence

import numpy as np

from core import checksums
from core.errors import UserError
from core.files import load_npz, save_npz
from core.text_lines import lines_of

_FIT_ITEMS = 50_000
_ITERATIONS = 50
FILE = "semantic_ids.npz"
LIST = "semantic_ids.jsonl"
# Distances held at once.
_CHUNK = 2**24


def _nearest(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (code int [V], squared distance [V]) of the nearest centre, the first of equals."""
    codes, distances = np.empty(len(points), np.int64), np.empty(len(points))
    squares = np.square(centres).sum(1)
    step = max(1, _CHUNK // len(centres))
    for start in range(0, len(points), step):
        part = points[start : start + step]
        shifted = squares - 2.0 * part @ centres.T
        codes[start : start + step] = chosen = shifted.argmin(1)
        distances[start : start + step] = np.square(part - centres[chosen]).sum(1)
    return codes, distances


def _too_few(size: int, level: int, there: str) -> UserError:
    return UserError(
        f"expected at least {size} different vectors for the codes of level {level + 1}, found "
        f"{there}; lower config.semantic_ids.codes"
    )


def fit_level(
    points: np.ndarray, size: int, seed: int, level: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fits one level: (centres [N, D], codes [V]), every code used. Raises UserError if too few."""
    from sklearn.cluster import KMeans  # slow to import

    distinct = len(np.unique(points, axis=0))
    if distinct < size:
        raise _too_few(size, level, str(distinct))
    rng = np.random.default_rng((seed, level))
    fitted = points[np.sort(rng.choice(len(points), min(_FIT_ITEMS, len(points)), replace=False))]
    kmeans = KMeans(size, n_init=1, max_iter=_ITERATIONS, random_state=seed * 97 + level)
    centres = kmeans.fit(fitted).cluster_centers_
    moved: set[int] = set()
    while True:
        codes, distances = _nearest(points, centres)
        counts = np.bincount(codes, minlength=size)
        empty = np.flatnonzero(counts == 0)
        if not len(empty):
            return centres, codes
        if moved.intersection(empty.tolist()):
            # It has lost its point to a code on a point that rounding cannot tell from it.
            raise _too_few(size, level, "fewer up to rounding")
        # An empty code takes the point that is farthest from its own among those with company.
        distances[counts[codes] == 1] = -1.0
        centres[empty[0]] = points[distances.argmax()]
        moved.add(int(empty[0]))


def _numbers_within(prefixes: np.ndarray) -> np.ndarray:
    """Numbers the rows of each distinct prefix 0, 1, ..., in the order of the rows."""
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
    """Holds the semantic ids of a catalogue.

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
        """Returns 16 hex digits over the codes and the levels."""
        content = json.dumps(self.levels).encode() + np.ascontiguousarray(self.codes).tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def save(self, folder: str) -> None:
        """Writes the ids whole or not at all."""
        arrays = {"codes": self.codes, "last_codes": np.array(self.last_codes)}
        arrays |= {f"codebook_{number}": book for number, book in enumerate(self.codebooks)}
        save_npz(os.path.join(folder, FILE), arrays, compressed=True)


def _with_last(
    prefixes: np.ndarray, last: np.ndarray, codebooks: tuple[np.ndarray, ...], size: int
) -> SemanticIds:
    """Makes the ids of prefixes [V, L] and last codes [V]; `size` 0 takes as many as there are."""
    needed = int(last.max()) + 1
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
        centres, of_level = fit_level(rest, size, seed, level)
        books.append(centres)
        codes.append(of_level)
        rest = rest - centres[of_level]
    prefixes = np.stack(codes, 1)
    return _with_last(prefixes, _numbers_within(prefixes), tuple(books), last_codes)


def extend(
    recorded: RecordedIds,
    items: Sequence[str],
    vectors: np.ndarray,
    sizes: Sequence[int],
    *,
    last_codes: int,
) -> SemanticIds:
    """Ids of a catalogue in which the items that had one keep it, whatever has left or joined it.

    A code's centre is the mean of what Eq. 1 leaves of the kept items that have it, so the vectors
    need not be of the space that the kept ids were made in. New items take the nearest centres, and
    last codes that no item ever had.

    Args:
      recorded: the ids of the earlier catalogue.
      items: the names of items 1..V.
      vectors: float [V, D].
      sizes: N of each level of k-means.
      last_codes: as of `fit`.

    Raises:
      UserError: none of the items had an id, the kept ids have other levels, or more items share
        their first codes than `last_codes`.
    """
    rows = np.array([recorded.rows.get(item, -1) for item in items])
    old, new = np.flatnonzero(rows >= 0), np.flatnonzero(rows < 0)
    if not len(old):
        raise UserError(
            f"expected items of this log in {recorded.path}, found none; pass ids of the same "
            "catalogue"
        )
    levels = len(sizes)
    if recorded.codes.shape[1] != levels + 1 or (recorded.codes[:, :-1] >= np.array(sizes)).any():
        most = tuple((recorded.codes[:, :-1].max(0) + 1).tolist())
        raise UserError(
            f"expected ids of config.semantic_ids.codes={tuple(sizes)} in {recorded.path}, found "
            f"codes up to {most}; pass the codes that they were made with"
        )
    rest, books = np.asarray(vectors, np.float64), []
    prefixes = np.empty((len(items), levels), np.int64)
    prefixes[old] = recorded.codes[rows[old], :-1]
    for level, size in enumerate(sizes):
        codes = prefixes[old, level]
        centres = np.zeros((size, rest.shape[1]))
        np.add.at(centres, codes, rest[old])
        counts = np.bincount(codes, minlength=size)
        centres /= np.maximum(counts, 1)[:, None]
        used = np.flatnonzero(counts)  # the items of the others have all left
        prefixes[new, level] = used[_nearest(rest[new], centres[used])[0]]
        rest = rest - centres[prefixes[:, level]]
        books.append(centres)
    last = np.empty(len(items), np.int64)
    last[old] = recorded.codes[rows[old], -1]
    taken: dict[tuple[int, ...], int] = {}
    for *prefix, code in recorded.codes.tolist():
        taken[tuple(prefix)] = max(taken.get(tuple(prefix), 0), code + 1)
    free = np.array([taken.get(tuple(prefix), 0) for prefix in prefixes[new].tolist()], np.int64)
    last[new] = free + _numbers_within(prefixes[new])
    return _with_last(prefixes, last, tuple(books), last_codes)


@dataclasses.dataclass(frozen=True)
class RecordedIds:
    """Holds the ids of an earlier catalogue, as `write_list` has recorded them.

    Attributes:
      path: of the file.
      rows: of `codes`, by the items' names, in order: the catalogue's, then the departed items'.
      codes: int32 [V, L+1].
    """

    path: str
    rows: dict[str, int]
    codes: np.ndarray

    def departed(self, items: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Returns names and codes of items that are not among `items`; their codes stay taken."""
        present = set(items)
        rows = {item: row for item, row in self.rows.items() if item not in present}
        return list(rows), self.codes[list(rows.values())]


def write_list(folder: str, items: Iterable[str], codes: np.ndarray) -> None:
    """Writes one JSON object a line: an item's name and its codes, for removed items as well.

    The checksum of the file is written beside it.
    """
    lines = (
        json.dumps({"item": item, "codes": row}, ensure_ascii=False) + "\n"
        for item, row in zip(items, codes.tolist(), strict=True)
    )
    checksums.save(os.path.join(folder, LIST), "".join(lines).encode())


def read_list(folder: str) -> RecordedIds:
    """Reads the list of names and codes that `write_list` wrote to a folder.

    Raises:
      UserError: no such file, one that has changed since it was written, or a line of it that is
        none of these.
    """
    path = os.path.join(folder, LIST)
    if not os.path.isfile(path):
        raise UserError(
            f"expected ids at {path}, found no such file; pass the workdir of a run of crs as "
            "config.semantic_ids.extend"
        )
    checksums.verify(path, "pass the workdir of another run, or bring the file back")
    rows: dict[str, int] = {}
    codes: list[list[int]] = []
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(lines_of(file)):
            try:
                record = json.loads(line)
                item, own = str(record["item"]), np.array(record["codes"], np.int32).tolist()
                fits = min(own) >= 0 and item not in rows and len(own) == len((codes or [own])[0])
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                fits = False
            if not fits:
                raise UserError(
                    f"expected a new item with as many codes as the others in line {number + 1} of "
                    f"{path}, found {line.strip()[:80]!r}; mend it"
                )
            rows[item] = number
            codes.append(own)
    if not codes:
        raise UserError(f"expected ids in {path}, found none; pass the workdir of another run")
    return RecordedIds(path, rows, np.array(codes, np.int32))


def load(folder: str) -> SemanticIds:
    """Reads the ids that `save` wrote to a folder.

    Raises:
      UserError: none there that can be read.
    """
    path = os.path.join(folder, FILE)
    again = "train again in another --workdir"
    checksums.check_readable(path)
    # The archive holds a checksum of every array.
    arrays = load_npz(path, "semantic ids", again)
    try:
        codes, last_codes = arrays["codes"], int(arrays["last_codes"])
        books = tuple(arrays[f"codebook_{number}"] for number in range(codes.shape[1] - 1))
        sizes = np.array([*map(len, books), last_codes])
        kinds = codes.dtype.kind in "iu" and all(
            book.ndim == 2 and book.dtype.kind == "f" for book in books
        )
        if codes.ndim != 2 or not kinds or (codes < 0).any() or (codes >= sizes).any():
            raise ValueError("codes beyond their codebooks")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"expected semantic ids at {path}, found none that can be read "
            f"({type(error).__name__}); {again}"
        ) from None
    return SemanticIds(codes, books, last_codes)
