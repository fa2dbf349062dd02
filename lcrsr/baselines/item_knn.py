"""Ranks by item-based nearest neighbours: cosine over users (Sarwar et al., WWW 2001).

A candidate's score is the sum of its similarities to the clicked items, the recent ones weighing
more (`decay` to the power of how many clicks ago). With `history_power` a training user's clicks
weigh 1 / n^power, n being how many there are, so that long histories do not dominate. Items that
are no neighbours of the history, all of them where it is empty, stand below every neighbour in the
order of their training clicks: without a neighbour the method is popularity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.sparse

from lcrsr.baselines.fitted import below_zero
from lcrsr.ranker import Batch

_SPARSE = ("data", "indices", "indptr")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Holds the recency decay in (0, 1], and the power of the history's length, at least 0."""

    decay: float
    history_power: float

    def __post_init__(self):
        if not 0 < self.decay <= 1 or self.history_power < 0:
            raise ValueError(
                f"expected decay in (0, 1] and history_power of at least 0, found {self.decay} and "
                f"{self.history_power}"
            )


class ItemKNN:
    """Scores items by their neighbours in the training clicks, as a fitted scorer.

    Args:
      similarity: of items to items, sparse float32 [V+1, V+1].
      popularity: float32 [V+1], `below_zero` of the training clicks.
    """

    def __init__(
        self, settings: Settings, similarity: scipy.sparse.csr_array, popularity: np.ndarray
    ):
        self._decay = settings.decay
        self._similarity, self._popularity = similarity, popularity

    def arrays(self) -> dict[str, np.ndarray]:
        parts = {name: getattr(self._similarity, name) for name in _SPARSE}
        return parts | {"popularity": self._popularity}

    def scores(self, batch: Batch) -> np.ndarray:
        """Scores all items, float32 [B, V+1]: neighbours above 0, all others below.

        Args:
          batch: with `rec_items` [B, L], right-padded.
        """
        near = self.similarities(batch)
        return np.where(near > 0, near, self._popularity)

    def similarities(self, batch: Batch) -> np.ndarray:
        """Sums the similarities of all items to a history, float32 [B, V+1]; 0 for no neighbour."""
        items = batch["rec_items"]
        valid = items != 0
        ago = valid.sum(1, keepdims=True) - np.cumsum(valid, 1)
        weights = np.where(valid, self._decay ** np.maximum(ago, 0), 0.0)
        users = np.broadcast_to(np.arange(len(items))[:, None], items.shape)
        history = scipy.sparse.csr_array(
            (weights[valid], (users[valid], items[valid])),
            shape=(len(items), self._similarity.shape[0]),
        )
        return (history @ self._similarity).toarray().astype(np.float32)


def fit(settings: Settings, clicks: scipy.sparse.csr_array) -> ItemKNN:
    """Finds the neighbours in training clicks, sparse [U+1, V+1], counts."""
    clicked = clicks.sign().astype(np.float64)
    lengths = np.maximum(np.asarray(clicked.sum(1)).ravel(), 1.0)
    weights = scipy.sparse.diags_array(lengths**-settings.history_power)
    together = (clicked.T @ weights @ clicked).tocsr()
    norms = np.sqrt(np.maximum(together.diagonal(), 1e-12))
    scale = scipy.sparse.diags_array(1.0 / norms)
    similarity = (scale @ together @ scale).tolil()
    similarity.setdiag(0.0)
    popularity = below_zero(np.asarray(clicks.sum(0)).ravel())
    return ItemKNN(settings, similarity.tocsr().astype(np.float32), popularity)


def restored(settings: Settings, arrays: Mapping[str, np.ndarray]) -> ItemKNN:
    items = len(arrays["popularity"])
    similarity = scipy.sparse.csr_array(
        tuple(arrays[name] for name in _SPARSE), shape=(items, items)
    )
    return ItemKNN(settings, similarity, arrays["popularity"])
