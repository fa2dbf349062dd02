"""Writes popularity and item-kNN as functions of arrays, so that they can be exported.

They compute what `lcrsr.baselines.popularity` and `lcrsr.baselines.item_knn` do with SciPy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from core.errors import UserError

Weights = Mapping[str, Any]


class FittedFunctions(NamedTuple):
    """Holds a fitted method as its weights, and what it computes of them.

    Attributes:
      weights: arrays by name.
      represent: (weights, histories) -> [arrays with B rows].
      catalogue: (weights, these, steps) -> scores float32 [B, V+1]; it reasons in no steps.
    """

    weights: dict[str, np.ndarray]
    represent: Callable[[Weights, Mapping[str, jax.Array]], list[jax.Array]]
    catalogue: Callable[[Weights, list[jax.Array], jax.Array], jax.Array]

    def score(
        self, weights: Weights, state: list[jax.Array], items: jax.Array, steps: jax.Array
    ) -> jax.Array:
        """Scores numbers of items int32 [B, N], float32 [B, N]."""
        return jnp.take_along_axis(self.catalogue(weights, state, steps), items, 1)


def functions_of(method: str, arrays: Mapping[str, np.ndarray], settings: Any) -> FittedFunctions:
    """Returns the functions of a fitted method.

    Args:
      arrays: what it has fitted (`core.experiment.Experiment.fitted_arrays`).
      settings: `config.model`.

    Raises:
      UserError: the method cannot be exported.
    """
    if method == "popularity":
        return _popularity(arrays)
    if method == "item_knn":
        return _item_knn(arrays, settings.decay)
    raise UserError(
        f"expected a run of LCR-SER, of a trained baseline, popularity or item_knn, found one of "
        f"{method}, which cannot be exported yet; serve its --workdir"
    )


def _popularity(arrays: Mapping[str, np.ndarray]) -> FittedFunctions:
    def represent(weights, batch):
        del weights
        return [jnp.zeros((batch["user"].shape[0], 1), jnp.float32)]

    def catalogue(weights, state, steps):
        del steps
        return state[0] + weights["counts"]

    return FittedFunctions({"counts": np.asarray(arrays["counts"])}, represent, catalogue)


def _item_knn(arrays: Mapping[str, np.ndarray], decay: float) -> FittedFunctions:
    size = len(arrays["popularity"])
    parts = tuple(arrays[name] for name in ("data", "indices", "indptr"))
    pairs = scipy.sparse.csr_array(parts, shape=(size, size)).tocoo()
    weights = {
        "similarity": pairs.data.astype(np.float32),
        "from": pairs.coords[0].astype(np.int32),
        "to": pairs.coords[1].astype(np.int32),
        "popularity": np.asarray(arrays["popularity"]),
    }

    def represent(weights, batch):
        items = batch["rec_items"]
        clicked = items != 0
        ago = clicked.sum(1, keepdims=True) - jnp.cumsum(clicked, 1)
        recency = jnp.where(clicked, jnp.float32(decay) ** jnp.maximum(ago, 0), 0.0)
        rows = jnp.arange(items.shape[0])[:, None]
        empty = jnp.zeros((items.shape[0], weights["popularity"].shape[0]), jnp.float32)
        return [empty.at[rows, items].add(recency)]

    def catalogue(weights, state, steps):
        del steps
        popularity = weights["popularity"]

        def of_user(history):
            near = weights["similarity"] * history[weights["from"]]
            return jnp.zeros_like(popularity).at[weights["to"]].add(near)

        near = jax.lax.map(of_user, state[0])  # one by one: all at once are B times the pairs
        return jnp.where(near > 0, near, popularity)

    return FittedFunctions(weights, represent, catalogue)
