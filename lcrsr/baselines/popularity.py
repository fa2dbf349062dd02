"""Most popular: items by their number of training clicks, the floor of every protocol."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse

from core.settings import Settings as Checked
from lcrsr.ranker import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """Holds nothing: popularity has no setting."""


class Popularity:
    """Scores every item by its clicks in training.

    Args:
      clicks: training clicks, sparse [U+1, V+1], counts.
    """

    def __init__(self, settings: Settings, clicks: scipy.sparse.csr_array):
        del settings
        self._counts = np.asarray(clicks.sum(0), np.float32).ravel()

    def scores(self, batch: Batch) -> np.ndarray:
        """Returns float32 [B, V+1], the same for every user."""
        return np.broadcast_to(self._counts, (len(batch["user"]), len(self._counts)))


def fit(settings: Settings, clicks: scipy.sparse.csr_array) -> Popularity:
    return Popularity(settings, clicks)
