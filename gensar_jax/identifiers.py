"""Makes the catalogue's final identifiers: collisions, their resolution, the table on disk.

The collision rate is that of GenSAR (RecSys 2025) 4.4.2: 1 - unique identifiers / items. It is less
than the share of items that collide, which counts every item of a shared identifier. Collisions are
resolved in up to 20 rounds that re-assign the last code of items that share an identifier by
Sinkhorn (LC-Rec, ICDE 2024), then with spare codes. Tables of other makers may have identifiers of
any length. Axis letters: V items, L levels, K codes, D width of a level.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from typing import Any

import numpy as np
import scipy.special

from core import checksums
from core.errors import UserError
from core.files import load_npz, save_npz
from gensar_jax.rqvae import SOURCES

ROUNDS = 20
_ARRAYS = "identifiers.npz"
_META = "identifiers.json"
# What the codes of a table are: of each level its own K codes; or one alphabet of K symbols, or of
# the K pieces of a SentencePiece model, at every place of identifiers of any length.
LEVELS, SYMBOLS, PIECES = "levels", "symbols", "pieces"
ALPHABETS = (LEVELS, SYMBOLS, PIECES)
# Fills the places after the last code of a shorter identifier.
NO_CODE = -1
# Makes identifiers where a config names nothing else (`gensar_jax.identifier_methods`).
DEFAULT_METHOD = "gensar_identifiers"


def collision_rate(codes: np.ndarray) -> float:
    """Returns 1 - unique identifiers / items, of codes [V, L]: the paper's formula.

    It is the share of items beyond the first that have each identifier.
    """
    return 1.0 - len(np.unique(codes, axis=0)) / len(codes)


def colliding_items(codes: np.ndarray) -> float:
    """Returns the share of items whose identifier another item has too, of codes [V, L]."""
    return sum(len(group) for group in _groups(codes)) / len(codes)


def _groups(codes: np.ndarray) -> list[np.ndarray]:
    """Items that share an identifier, each group ascending, in the order of the identifiers."""
    _, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    return [part for part in np.split(order, np.cumsum(counts)[:-1]) if len(part) > 1]


def numbered(codes: np.ndarray, num_codes: int) -> np.ndarray:
    """Tells equal identifiers apart by counting them.

    Args:
      codes: int [V, L], each from 0 to K-1.
      num_codes: K, the base of the counts.

    Returns:
      `codes` where they are unique; else int [V, L+n] with the n digits, the first one first, that
      the most frequent identifier needs.
    """
    counts = np.zeros(len(codes), np.int64)
    for group in _groups(codes):
        counts[group] = np.arange(len(group))
    digits = []
    while counts.any():
        counts, digit = np.divmod(counts, num_codes)
        digits.append(digit.astype(codes.dtype))
    return np.column_stack([codes, *reversed(digits)]) if digits else codes


def balanced_codes(distances: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """Assigns by Sinkhorn in float64 on the host, for groups of any size;
    `quantizer.sinkhorn_assign` elsewhere.

    Args:
      distances: [B, K], squared.

    Returns:
      int [B].
    """
    points, codes = distances.shape
    lowest, highest = distances.min(), distances.max()
    cost = (distances - (lowest + highest) / 2) / ((highest - lowest) / 2 + 1e-5) / epsilon
    of_codes = np.zeros(codes)
    for _ in range(iterations):
        of_points = -np.log(points) - scipy.special.logsumexp(of_codes - cost, axis=1)
        of_codes = -np.log(codes) - scipy.special.logsumexp(of_points[:, None] - cost, axis=0)
    return np.argmax(of_codes - cost, axis=1)


def _distances(residuals: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    residuals, codebook = residuals.astype(np.float64), codebook.astype(np.float64)
    squares = np.square(residuals).sum(-1)[:, None] + np.square(codebook).sum(-1)
    return squares - 2.0 * residuals @ codebook.T


@dataclasses.dataclass(frozen=True)
class Resolution:
    """Holds unique codes int32 [V, L], and what they took.

    Attributes:
      rounds: Sinkhorn rounds run.
      moved: items whose identifier changed.
      spares: of these, items that took a spare code.
    """

    codes: np.ndarray
    rounds: int
    moved: int
    spares: int


def resolve(
    codes: np.ndarray,
    residuals: np.ndarray,
    codebooks: np.ndarray,
    *,
    epsilon: float,
    iterations: int,
    rounds: int = ROUNDS,
) -> Resolution:
    """Makes identifiers unique by changing the last code, and where all of these are taken, the own
    code before it.

    Args:
      codes: int32 [V, L], the nearest codes.
      residuals: float32 [V, D], what the last level was given.
      codebooks: float32 [L', K, D], of the levels that may change: the identifier's last L' >= 1.
      epsilon, iterations: of Sinkhorn; epsilon 0 goes to spare codes at once.

    Raises:
      UserError: more items share a prefix than there are codes to tell them apart.
    """
    codebook = codebooks[-1]
    before, codes = codes, codes.copy()
    done = 0
    while epsilon > 0 and done < rounds and (groups := _groups(codes)):
        for group in groups:
            distances = _distances(residuals[group], codebook)
            codes[group, -1] = balanced_codes(distances, epsilon, iterations)
        done += 1
    spares = _take_spares(codes, residuals, codebooks)
    moved = int((codes != before).any(1).sum())
    return Resolution(codes, done, moved, spares)


def _take_spares(codes: np.ndarray, residuals: np.ndarray, codebooks: np.ndarray) -> int:
    """Gives all but one item of every group its nearest free last code, in place."""
    spares, num_codes = 0, len(codebooks[-1])
    for group in _groups(codes):
        siblings = (codes[:, :-1] == codes[group[0], :-1]).all(1)
        distances = _distances(residuals[group], codebooks[-1])
        # The item nearest to the code keeps it.
        keeps = int(np.argmin(distances[:, codes[group[0], -1]]))
        free = np.ones(num_codes, bool)
        free[codes[siblings, -1]] = False
        before_last = None
        for row in np.delete(np.arange(len(group)), keeps):
            item = group[row]
            if not free.any():
                before_last, free = _next_prefix(codes, item, codebooks)
            if before_last is not None:
                codes[item, -2] = before_last
            spare = int(np.argmin(np.where(free, distances[row], np.inf)))
            codes[item, -1] = spare
            free[spare] = False
            spares += 1
    return spares


def _next_prefix(codes: np.ndarray, item: int, codebooks: np.ndarray) -> tuple[int, np.ndarray]:
    """Returns the code nearest to the item's last but one with room below it, and its free last
    codes.
    """
    num_codes = len(codebooks[-1])
    if len(codebooks) > 1:
        current = codebooks[-2][codes[item, -2]]
        family = codes[(codes[:, :-2] == codes[item, :-2]).all(1)]
        for code in np.argsort(np.square(codebooks[-2] - current).sum(-1), kind="stable"):
            free = np.ones(num_codes, bool)
            free[family[family[:, -2] == code, -1]] = False
            if free.any():
                return int(code), free
    raise UserError(
        f"expected at most {num_codes ** min(len(codebooks), 2)} items to share a prefix of codes, "
        "found more that no code is left to tell apart; give these items different vectors (text, "
        "clicks) or use more codes or levels"
    )


def join(
    codes: np.ndarray, nearest: np.ndarray, residuals: np.ndarray, codebooks: np.ndarray
) -> np.ndarray:
    """Returns unique codes of a catalogue and of items that join it, whose own give way.

    Args:
      codes: int32 [V, L], unique, of the catalogue; they stay.
      nearest: int32 [n, L], the nearest codes of the items that join.
      residuals: float32 [n, D], what their last level was given.
      codebooks: as of `resolve`.

    Raises:
      UserError: as `resolve`.
    """
    joined = np.concatenate([codes, np.asarray(nearest, codes.dtype)])
    for item in range(len(codes), len(joined)):
        before = joined[: item + 1]
        siblings = (before[:-1, :-1] == before[-1, :-1]).all(1)
        free = np.ones(len(codebooks[-1]), bool)
        free[before[:-1][siblings, -1]] = False
        if free[joined[item, -1]]:
            continue
        if not free.any():
            joined[item, -2], free = _next_prefix(before, item, codebooks)
        distances = _distances(residuals[item - len(codes)][None], codebooks[-1])[0]
        joined[item, -1] = int(np.argmin(np.where(free, distances, np.inf)))
    return joined


@dataclasses.dataclass(frozen=True)
class IdentifierTable:
    """Holds the identifiers of a catalogue, items 1..V in the order of the log.

    Attributes:
      codes: by 'semantic' and 'collaborative' int32 [V, L], each from 0 to K-1, shared codes first.
        With a single source both are the same.
      shared_levels: L_m; the levels after it are the source's own.
      num_codes: K.
      data_hash: of the log whose items these are.
      training_split: which of its clicks they were trained on
    (`input_pipelines.dataset.Dataset`). The hash leaves it out.
      alphabet: one of ALPHABETS. With others than LEVELS both sources have the same codes, and
        NO_CODE fills the places after an identifier's last one.
      pieces: the digest of the SentencePiece model whose pieces the codes are; else ''.
      method: that made them. The hash leaves it out.
    """

    codes: dict[str, np.ndarray]
    shared_levels: int
    num_codes: int
    data_hash: str
    training_split: str
    alphabet: str = LEVELS
    pieces: str = ""
    method: str = DEFAULT_METHOD

    @property
    def hash(self) -> str:
        """Returns 16 hex digits over the codes and what they mean."""
        digest = hashlib.sha256()
        meaning: list[Any] = [self.shared_levels, self.num_codes, self.data_hash]
        if self.alphabet != LEVELS:
            meaning += [self.alphabet, self.pieces]
        digest.update(json.dumps(meaning).encode())
        for source in SOURCES:
            codes = np.ascontiguousarray(self.codes[source], np.int32)
            digest.update(json.dumps([source, codes.shape]).encode() + codes.tobytes())
        return digest.hexdigest()[:16]

    @property
    def num_items(self) -> int:
        return len(self.codes[SOURCES[0]])


def of_one_alphabet(
    codes: np.ndarray,
    num_codes: int,
    *,
    data_hash: str,
    training_split: str,
    pieces: str = "",
) -> IdentifierTable:
    """Returns the table of identifiers of any length, the same for both tasks.

    Args:
      codes: integers [V, L], from 0 to num_codes - 1; NO_CODE after the last of an identifier.
      num_codes, data_hash, training_split, pieces: as of `IdentifierTable`.
    """
    codes = codes.astype(np.int32)
    return IdentifierTable(
        dict.fromkeys(SOURCES, codes),
        codes.shape[1],
        num_codes,
        data_hash,
        training_split,
        PIECES if pieces else SYMBOLS,
        pieces,
    )


def _check_ends(codes: np.ndarray, where: str, again: str) -> None:
    """Checks that codes [V, L] of any length begin with one and stop once."""
    inside = codes != NO_CODE
    broken = ~inside[:, 0] | (inside[:, 1:] & ~inside[:, :-1]).any(1)
    if broken.any():
        item = int(np.flatnonzero(broken)[0])
        raise UserError(
            f"expected codes and then {NO_CODE} to the end in every identifier of {where}, found "
            f"{codes[item].tolist()} of item {item + 1}; {again}"
        )


def validate_table(table: IdentifierTable, where: str) -> None:
    """Checks what every consumer relies on.

    Raises:
      UserError: identifiers that are not unique, codes outside the codebook, shared codes that
        differ between an item's two identifiers, an alphabet that is none, or a place without a
        code before one with a code.
    """
    again = "write it again with launch.train and the config of the identifiers"
    shapes = {source: table.codes[source].shape for source in SOURCES}
    shared = table.shared_levels
    if len(set(shapes.values())) != 1 or len(shapes[SOURCES[0]]) != 2:
        raise UserError(
            f"expected two tables [V, L] of one shape in {where}, found {shapes}; {again}"
        )
    levels = shapes[SOURCES[0]][1]
    if not 0 <= shared <= levels:
        raise UserError(
            f"expected shared levels from 0 to {levels} in {where}, found {shared}; {again}"
        )
    if table.alphabet not in ALPHABETS:
        raise UserError(
            f"expected an alphabet of {', '.join(ALPHABETS)} in {where}, found "
            f"{table.alphabet!r:.60}; {again}"
        )
    least = 0 if table.alphabet == LEVELS else NO_CODE
    for source, codes in table.codes.items():
        if codes.size and (codes.min() < least or codes.max() >= table.num_codes):
            worst = int(codes.min()) if codes.min() < least else int(codes.max())
            raise UserError(
                f"expected {source} codes from 0 to {table.num_codes - 1} in {where}, found "
                f"{worst}; {again}"
            )
        if table.alphabet != LEVELS and codes.size:
            _check_ends(codes, where, again)
        groups = _groups(codes)
        if groups:
            first = [int(item) + 1 for item in groups[0][:2]]
            raise UserError(
                f"expected unique {source} identifiers in {where}, found items {first[0]} and "
                f"{first[1]} with the same; {again}"
            )
    semantic, collaborative = (table.codes[source][:, :shared] for source in SOURCES)
    if not np.array_equal(semantic, collaborative):
        item = int(np.flatnonzero((semantic != collaborative).any(1))[0]) + 1
        raise UserError(
            f"expected the same {shared} shared codes in both identifiers of an item in {where}, "
            f"found item {item} with others; {again}"
        )


_FIRST = "run launch.train with the config of the identifiers first"


def save_table(directory: str, table: IdentifierTable, report: dict[str, Any]) -> None:
    """Writes identifiers.npz and identifiers.json; the JSON, written last, names the hash.

    Args:
      report: further entries of the JSON, such as collision rates.

    Raises:
      UserError: as `validate_table`; nothing is written.
    """
    validate_table(table, "the new identifier table")
    codes = {source: table.codes[source].astype(np.int32) for source in SOURCES}
    save_npz(os.path.join(directory, _ARRAYS), codes, compressed=True)
    meta = {
        "hash": table.hash,
        "items": table.num_items,
        "shared_levels": table.shared_levels,
        "specific_levels": table.codes[SOURCES[0]].shape[1] - table.shared_levels,
        "codes": table.num_codes,
        "data_hash": table.data_hash,
        "training_split": table.training_split,
        "alphabet": table.alphabet,
        "pieces": table.pieces,
        "method": table.method,
        "files": checksums.describe(directory, [_ARRAYS]),
        **report,
    }
    checksums.write_sealed(os.path.join(directory, _META), meta)


def is_saved(directory: str) -> bool:
    """Tells whether `save_table` has written a folder to its end."""
    return os.path.exists(os.path.join(directory, _META))


def load_table(directory: str, *, data_hash: str, remedy: str = _FIRST) -> IdentifierTable:
    """Reads the table that `save_table` wrote, and checks it.

    Args:
      directory: the workdir of a run that wrote identifiers.
      data_hash: of the log whose items are wanted.
      remedy: what to do where the files are missing or damaged.

    Raises:
      UserError: no table there, one of another catalogue, one whose hash does not fit, or as
        `validate_table`.
    """
    path, what = os.path.join(directory, _ARRAYS), f"{_ARRAYS} and {_META}"
    meta = checksums.read_sealed(os.path.join(directory, _META), what, remedy)
    checksums.check(directory, meta.get("files"), remedy)
    arrays = load_npz(path, what, remedy)
    try:
        codes = {source: arrays[source] for source in SOURCES}
        table = IdentifierTable(
            codes,
            meta["shared_levels"],
            meta["codes"],
            meta["data_hash"],
            meta["training_split"],
            # Tables from before there were others.
            meta.get("alphabet", LEVELS),
            meta.get("pieces", ""),
            meta.get("method", DEFAULT_METHOD),
        )
        written = meta["hash"]
        numbers = table.shared_levels, table.num_codes
        names = (
            *(table.data_hash, table.training_split, table.alphabet, table.pieces),
            *(table.method, written),
        )
        if {*map(type, numbers)} != {int} or {*map(type, names)} != {str}:
            raise TypeError(f"expected whole numbers {numbers} and strings {names}")
        if any(array.dtype.kind not in "iu" for array in codes.values()):
            raise TypeError("expected codes that are whole numbers")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"expected {what} in {directory}, found none that can be read "
            f"({type(error).__name__}); {remedy}"
        ) from None
    validate_table(table, path)
    if table.hash != written:
        raise UserError(
            f"expected the identifier table of hash {written} in {path}, found {table.hash}; "
            "write both files again with launch.train"
        )
    if table.data_hash != data_hash:
        raise UserError(
            f"expected identifiers of the log {data_hash} in {path}, found those of "
            f"{table.data_hash}; train identifiers on this data"
        )
    return table
