"""Most popular: items by their number of training clicks, the floor of every protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.sparse

from lcrsr.ranker import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Holds nothing: popularity has no setting."""


class Popularity:
    """Scores every item by its clicks in training.

    Args:
      counts: float32 [V+1], of training clicks.
    """

    def __init__(self, counts: np.ndarray):
        self._counts = counts

    def scores(self, batch: Batch) -> np.ndarray:
        """Returns float32 [B, V+1], the same for every user."""
        return np.broadcast_to(self._counts, (len(batch["user"]), len(self._counts)))

    def arrays(self) -> dict[str, np.ndarray]:
        return {"counts": self._counts}


def fit(settings: Settings, clicks: scipy.sparse.csr_array) -> Popularity:
    """Counts the training clicks, sparse [U+1, V+1]."""
    del settings
    return Popularity(np.asarray(clicks.sum(0), np.float32).ravel())


def restored(settings: Settings, arrays: Mapping[str, np.ndarray]) -> Popularity:
    del settings
    return Popularity(arrays["counts"])
