"""Keeps the searches of a history that are near its clicks: Figure 2 of LCR-SER.

A search is compared with the mean of the clicked items' vectors, both from one fixed embedding, by
cosine; only what lies above a threshold stays. -1 keeps all, 1 removes all.
"""

from __future__ import annotations

import numpy as np

from core.errors import UserError
from core.files import load_npz

Batch = dict[str, np.ndarray]


class SearchFilter:
    """Filters the searches of a batch by the vectors of `path` and one threshold.

    Args:
      path: an npz with `item` [V+1, D] and `word` [W+1, D], row 0 padding.
      threshold: in [-1, 1].

    Raises:
      UserError: the file is missing or cannot be read.
    """

    def __init__(self, path: str, threshold: float):
        what = "the vectors of a sweep over thresholds"
        again = "bring it back, or move the sweep's whole folder"
        arrays = load_npz(path, what, again)
        for name in ("item", "word"):
            rows = arrays.get(name, np.zeros(0))
            if rows.ndim != 2 or rows.dtype.kind != "f" or not np.isfinite(rows).all():
                raise UserError(f"expected finite {name} vectors in {path}, found none; {again}")
        self._items, self._words = arrays["item"], arrays["word"]
        self._threshold = threshold

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch without searches below the threshold; the rest moves up, in order."""
        if self._threshold <= -1:
            return batch
        near = self._similar(batch)
        order = np.argsort(~near, axis=1, kind="stable")
        near = np.take_along_axis(near, order, 1)

        def moved(name: str) -> np.ndarray:
            values = batch[name]
            shape = (*order.shape, *[1] * (values.ndim - 2))
            values = np.take_along_axis(values, order.reshape(shape), 1)
            return np.where(near.reshape(shape), values, 0).astype(values.dtype)

        fields = {name: moved(name) for name in ("query_words", "clicked_items")}
        fields |= _orders(batch["rec_order"], batch["rec_items"] != 0, moved("search_order"), near)
        return batch | fields

    def _similar(self, batch: Batch) -> np.ndarray:
        """Tells which searches are near, bool [B, Ls]; without vectors a cosine is 0."""
        history = _mean(self._items, batch["rec_items"])[:, None]
        searches = _mean(self._words, batch["query_words"])
        searches = searches + _mean(self._items, batch["clicked_items"])
        norms = np.linalg.norm(history, axis=-1) * np.linalg.norm(searches, axis=-1)
        cosine = (history * searches).sum(-1) / np.maximum(norms, 1e-9)
        cosine = np.minimum(cosine, 1)  # rounding goes beyond; a threshold of 1 keeps nothing
        events = (batch["query_words"] != 0).any(-1) | (batch["clicked_items"] != 0).any(-1)
        return events & (cosine > self._threshold)


def _mean(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Returns the mean of the rows of ids [..., n] that are not padding, [..., D]."""
    valid = ids != 0
    return (table[ids] * valid[..., None]).sum(-2) / np.maximum(valid.sum(-1), 1)[..., None]


def _orders(rec: np.ndarray, clicks: np.ndarray, search: np.ndarray, near: np.ndarray) -> Batch:
    """Numbers the places of the events that are left anew: no gap tells of a removed search."""
    valid = np.concatenate([clicks, near], 1)
    held = np.where(valid, np.concatenate([rec, search], 1), np.iinfo(np.int32).max)
    places = np.argsort(np.argsort(held, axis=1, kind="stable"), axis=1) * valid
    first, second = np.split(places.astype(np.int32), [rec.shape[1]], 1)
    return {"rec_order": first, "search_order": second}
