"""Makes the item vectors that identifiers are learnt from: GenSAR (RecSys 2025) 3.2.1, CRS 3.1.1.

Semantic: TF-IDF factors, or vectors of a text encoder (`text_encoders.named`). Collaborative:
vectors exported from a trained recommender, or factors of the training clicks. All are float32
[V, D] for items 1..V in the order of the log, rows of length 1; an item without text or clicks has
a row of zeros.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import scipy.sparse

from core import checksums
from core.errors import UserError
from core.files import load_npy
from core.settings import CountOrNone, Rate, Settings, at_least

_EXPORT_AGAIN = "export them again with launch.export_vectors from a model of this data"


def content_hash(vectors: np.ndarray) -> str:
    """Returns 16 hex digits over the shape and the float32 values."""
    values = np.ascontiguousarray(vectors, np.float32)
    return hashlib.sha256(json.dumps(values.shape).encode() + values.tobytes()).hexdigest()[:16]


def source_hash(name: str) -> str:
    """Returns 16 hex digits over a file, or a folder's files and their names; '' of any other name.

    What is kept under a setting that names a path must not outlive what lies there.
    """
    if not os.path.exists(name):
        return ""
    paths = [name]
    if os.path.isdir(name):
        inside = (os.path.join(at, file) for at, _, files in os.walk(name) for file in files)
        paths = sorted(inside)
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.path.relpath(path, name).encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row that is 0 up to rounding becomes 0."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    known = norms > 1e-6 * norms.max(initial=0.0)
    return np.where(known, vectors / np.where(known, norms, 1.0), 0.0).astype(np.float32)


def check_texts(texts: Sequence[str], otherwise: str = "") -> None:
    """Raises UserError where no item has text; `otherwise` is what else can be done about it."""
    if not any(text.strip() for text in texts):
        raise UserError(
            f"expected text on the items, found none on all {len(texts)}; bring a catalogue with "
            f"titles{otherwise}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactorConfig(Settings):
    """Says how sparse rows become dense ones.

    Attributes:
      width: singular vectors kept; fewer where there are fewer rows or columns.
      sketch_width: random directions of what the singular vectors leave out; 0 leaves it out.
      sketch_share: of a row's squared length that goes to the sketch.
      seed: of both.
    """

    width: Annotated[int, at_least(1)]
    sketch_width: CountOrNone
    sketch_share: Rate
    seed: int


class _Factors:
    """Holds the first singular vectors of some rows, beside a random projection of the rest.

    A truncated SVD gives rows that differ in rare columns alone nearly the same vector, and with it
    the same identifier; the projection (Johnson and Lindenstrauss 1984) keeps them apart.

    Attributes:
      vectors: float32 [V, D], of these rows.
    """

    def __init__(self, rows: scipy.sparse.csr_array, config: FactorConfig):
        from sklearn.utils.extmath import randomized_svd

        self._config = config
        width = min(config.width, *rows.shape)
        left, values, self._right = randomized_svd(rows, width, random_state=config.seed)
        rng = np.random.default_rng(config.seed)
        shape = (rows.shape[1], config.sketch_width)
        if config.sketch_width:
            self._directions = rng.normal(size=shape) / np.sqrt(config.sketch_width)
        self.vectors = self._joined(rows, left * values)

    def of(self, rows: scipy.sparse.csr_array) -> np.ndarray:
        """Returns the vectors of further rows, float32 [n, D]."""
        return self._joined(rows, rows @ self._right.T)

    def _joined(self, rows: scipy.sparse.csr_array, reduced: np.ndarray) -> np.ndarray:
        if not self._config.sketch_width:
            return unit_rows(reduced)
        whole = rows @ self._directions
        rest = whole - reduced @ (self._right @ self._directions)
        # Where nothing is left out the rest is rounding, which would tell equal rows apart.
        norms = [np.linalg.norm(part, axis=1) for part in (rest, whole)]
        rest = unit_rows(np.where((norms[0] > 1e-6 * norms[1])[:, None], rest, 0.0))
        share = self._config.sketch_share
        return unit_rows(
            np.concatenate([(1 - share) ** 0.5 * unit_rows(reduced), share**0.5 * rest], 1)
        )


class TextVectors:
    """Holds TF-IDF (1 + log tf, smooth idf, rows of length 1) as singular vectors and a sketch.

    Args:
      texts: of a catalogue, which the factors are fitted to.
      split: a text's words.

    Attributes:
      vectors: float32 [V, D], of these texts.

    Raises:
      UserError: no item has text.
    """

    def __init__(
        self, texts: Sequence[str], split: Callable[[str], list[str]], config: FactorConfig
    ):
        from sklearn.feature_extraction.text import TfidfVectorizer

        check_texts(texts)
        self._vectorizer = TfidfVectorizer(analyzer=split, sublinear_tf=True)
        self._factors = _Factors(self._vectorizer.fit_transform(texts), config)
        self.vectors = self._factors.vectors

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the vectors of further texts, float32 [n, D]; 0 of one without a known word."""
        return self._factors.of(self._vectorizer.transform(texts))


def from_text(
    texts: Sequence[str], split: Callable[[str], list[str]], config: FactorConfig
) -> np.ndarray:
    """Returns the vectors float32 [V, D] of `TextVectors`."""
    return TextVectors(texts, split, config).vectors


def from_clicks(clicks: scipy.sparse.csr_array, config: FactorConfig) -> np.ndarray:
    """Returns the training clicks of each item as singular vectors and a sketch.

    A row holds an item's users, each weighing 1 / sqrt(the user's items) so that the active do not
    decide alone, brought to length 1.

    Args:
      clicks: [U+1, V+1], counts; row and column 0 are padding.
    """
    clicked = clicks[1:, 1:].sign().astype(np.float64)
    users = np.maximum(np.asarray(clicked.sum(1)).ravel(), 1.0) ** -0.5
    rows = scipy.sparse.csr_array(clicked.T) * users
    norms = np.sqrt(np.maximum(np.asarray(rows.power(2).sum(1)).ravel(), 1e-12))
    rows = scipy.sparse.diags_array(1.0 / norms) @ rows
    return _Factors(rows.tocsr(), config).vectors


def read_description(path: str) -> dict[str, Any]:
    """Reads the JSON beside exported vectors.

    Args:
      path: of the .npy.

    Raises:
      UserError: it is missing, malformed, or has changed since it was written.
    """
    described = os.path.splitext(path)[0] + ".json"
    return checksums.read_sealed(
        described, f"the description of the item vectors {path}", _EXPORT_AGAIN
    )


def load_vectors(path: str, *, num_items: int, data_hash: str) -> np.ndarray:
    """Reads exported vectors: a .npy of float32 [V, D], and a .json of the same name beside it.

    The JSON's `data_hash` names the log they were trained on; they must not have seen another. It
    holds the checksum of the .npy, too; both files may have been renamed together.

    Raises:
      UserError: a file is missing or malformed, has changed since it was written, is of another
        log, of another number of items, or has values that are not finite.
    """
    description, again = read_description(path), _EXPORT_AGAIN
    files = description.get("files")
    folder, name = os.path.split(os.path.abspath(path))
    described = files.items() if isinstance(files, dict) else ()
    own = [wanted for file, wanted in described if file.endswith(".npy")]
    checksums.check(folder, {name: own[0]} if own else None, again)
    vectors, origin = load_npy(path, "item vectors", again), description.get("data_hash")
    if origin != data_hash:
        raise UserError(
            f"expected vectors of the log {data_hash} in {path}, found those of {origin}; {again}"
        )
    if vectors.ndim != 2 or len(vectors) != num_items or vectors.dtype.kind != "f":
        raise UserError(
            f"expected float32 [{num_items}, D], one row an item, in {path}, found "
            f"{vectors.dtype} {list(vectors.shape)}; {again}"
        )
    broken = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(broken):
        raise UserError(
            f"expected finite vectors in {path}, found NaN or infinity for {len(broken)} items, "
            f"first item {broken[0] + 1}; {again}"
        )
    return unit_rows(vectors)
