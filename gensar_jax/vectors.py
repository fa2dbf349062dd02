"""Item vectors that identifiers are learnt from: GenSAR (RecSys 2025) 3.2.1.

Semantic: any sentence-transformers model, or TF-IDF and a truncated SVD, which need no download.
Collaborative: vectors exported from a trained recommender, or a truncated SVD of the training
clicks. All are float32 [V, D] for items 1..V in the order of the log, rows of length 1; an item
without text or clicks has a row of zeros.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse

from core.errors import UserError


def content_hash(vectors: np.ndarray) -> str:
    """16 hex digits over the shape and the float32 values."""
    values = np.ascontiguousarray(vectors, np.float32)
    return hashlib.sha256(json.dumps(values.shape).encode() + values.tobytes()).hexdigest()[:16]


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row that is 0 up to rounding becomes 0."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    known = norms > 1e-6 * norms.max(initial=0.0)
    return np.where(known, vectors / np.where(known, norms, 1.0), 0.0).astype(np.float32)


def _check_texts(texts: Sequence[str]) -> None:
    if not any(text.strip() for text in texts):
        raise UserError(
            f"expected text on the items, found none on all {len(texts)}; bring a catalogue with "
            "titles, or set model.sources to ('collaborative',)"
        )


def from_text(
    texts: Sequence[str], split: Callable[[str], list[str]], *, width: int, seed: int
) -> np.ndarray:
    """TF-IDF (1 + log tf, smooth idf, rows of length 1), then its first singular vectors.

    Args:
      split: a text's words.
      width: D at most; fewer where there are fewer items or words.

    Raises:
      UserError: no item has text.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.utils.extmath import randomized_svd

    _check_texts(texts)
    vectorizer = TfidfVectorizer(analyzer=split, sublinear_tf=True)
    weights = vectorizer.fit_transform(texts)
    left, values, _ = randomized_svd(weights, min(width, *weights.shape), random_state=seed)
    return unit_rows(left * values)


def from_sentence_transformer(texts: Sequence[str], name: str) -> np.ndarray:
    """Vectors of a sentence-transformers model, by its name or folder.

    Raises:
      UserError: the package is absent, the model cannot be loaded, or no item has text.
    """
    _check_texts(texts)
    try:
        import sentence_transformers
    except ImportError:
        raise UserError(
            f"expected the package sentence-transformers for semantic vectors from {name}, found "
            "none; install it, or set vectors.semantic to 'tfidf_svd'"
        ) from None
    try:
        model = sentence_transformers.SentenceTransformer(name)
    except Exception as error:  # missing files, no network, an unknown architecture
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"expected a sentence-transformers model at vectors.semantic={name}, found none that "
            f"loads ({reason}); pass another name or folder"
        ) from error
    vectors = np.asarray(model.encode(list(texts), show_progress_bar=False), np.float32)
    vectors[[not text.strip() for text in texts]] = 0.0
    return unit_rows(vectors)


def from_clicks(clicks: scipy.sparse.csr_array, *, width: int, seed: int) -> np.ndarray:
    """Item factors of the training clicks: truncated SVD of the normalised user-item graph.

    Entries are 1 / sqrt(user's items x item's users), so that neither the active nor the popular
    decide alone.

    Args:
      clicks: [U+1, V+1], counts; row and column 0 are padding.
      width: D at most; fewer where there are fewer users or items.
    """
    from sklearn.utils.extmath import randomized_svd

    seen = clicks[1:, 1:].sign().astype(np.float64)
    scales = [np.maximum(np.asarray(seen.sum(axis)).ravel(), 1.0) ** -0.5 for axis in (1, 0)]
    graph = scipy.sparse.diags_array(scales[0]) @ seen @ scipy.sparse.diags_array(scales[1])
    _, values, right = randomized_svd(graph.tocsr(), min(width, *graph.shape), random_state=seed)
    return unit_rows(right.T * values)


def load_vectors(path: str, *, num_items: int, data_hash: str) -> np.ndarray:
    """Exported vectors: a .npy of float32 [V, D], and a .json of the same name beside it.

    The JSON's `data_hash` names the log they were trained on; they must not have seen another.

    Raises:
      UserError: a file is missing or malformed, of another log, of another number of items, or
        with values that are not finite.
    """
    described = os.path.splitext(path)[0] + ".json"
    again = "export them again with launch.export_vectors from a model of this data"
    try:
        vectors = np.load(path)
        with open(described, encoding="utf-8") as file:
            found = json.load(file)["data_hash"]
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(
            f"expected item vectors at {path} with {os.path.basename(described)} beside, found "
            f"none that can be read ({type(error).__name__}); {again}"
        ) from None
    if found != data_hash:
        raise UserError(
            f"expected vectors of the log {data_hash} in {path}, found those of {found}; {again}"
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
