"""Makes P5-CID's collaborative identifiers: spectral clustering of which items share users.

Paper: Hua et al., "How to Index Item IDs for Recommendation Foundation Models" (SIGIR-AP 2023), on
Geng et al., P5 (RecSys 2022). Two items' weight is the number of users whose training clicks hold
both, in either order: 5 users with a before b and 2 with b before a make 7, as in the paper's text
and OpenP5 (the first released code drops one of the orders). A cluster of more than M items is
clustered again on its own weights. An identifier is one symbol for each tree node on the item's
path, and a counter within the leaf, whose symbols all leaves share.

Settled here: a user counts once for a pair, however often he clicked. An item without a shared user
in its cluster hangs on a further node of its own kind, in the order of the catalogue. A node that
clustering does not divide is cut in that order. The T5 has no table of whole words, as the others
here have none; nor are items known only from validation or test left out, so that every one has an
identifier.

Axis letters: V items, N clusters.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Annotated, Any, ClassVar

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

from core.errors import UserError
from core.settings import Count, Settings, at_least
from gensar_jax import identifiers
from gensar_jax.fitted_identifier_experiment import FittedIdentifierExperiment
from gensar_jax.identifiers import NO_CODE, IdentifierTable
from gensar_jax.settings import Described


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterSettings(Settings):
    """Says how items are clustered.

    Attributes:
      clusters: N, children of a tree node.
      most_items: M, items of a leaf at most.
    """

    clusters: Annotated[int, at_least(2)]
    most_items: Count

    def check(self) -> None:
        if self.most_items < self.clusters:
            raise ValueError(
                f"expected most_items of at least the {self.clusters} clusters, found "
                f"{self.most_items}"
            )


def shared_users(clicks: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Counts the users that each pair of items shares.

    Args:
      clicks: [U+1, V+1], training clicks of each user; row and column 0 are padding.

    Returns:
      int32 [V, V], symmetric, with a diagonal of 0.
    """
    clicked = clicks[1:, 1:].sign().astype(np.int32)
    weights = scipy.sparse.csr_array(clicked.T @ clicked)
    weights.setdiag(0)
    weights.eliminate_zeros()
    return weights


def clusters_of(weights: scipy.sparse.csr_array, clusters: int, seed: int) -> np.ndarray:
    """Clusters the items of a graph by its normalised Laplacian's first eigenvectors.

    Labels come from a pivoted QR decomposition (Damle, Minden and Ying, Information and Inference
    2019), which needs no start.

    Args:
      weights: [V, V], symmetric, every row with a weight.
      clusters: N.
      seed: of the eigensolver's start.

    Returns:
      int [V], from 0 to N-1; some may have no item.
    """
    items = weights.shape[0]
    count = min(clusters, items)
    scale = np.asarray(weights.sum(1), np.float64).ravel() ** -0.5
    scaled = scipy.sparse.diags_array(scale) @ weights @ scipy.sparse.diags_array(scale)
    if items <= 4 * count + 2:
        _, vectors = scipy.linalg.eigh(scaled.toarray(), subset_by_index=[items - count, items - 1])
    else:
        start = np.random.default_rng(seed).standard_normal(items)
        _, vectors = scipy.sparse.linalg.eigsh(scaled, count, which="LA", v0=start)
    vectors = vectors * scale[:, None]
    _, _, pivots = scipy.linalg.qr(vectors.T, mode="economic", pivoting=True)
    left, _, right = scipy.linalg.svd(vectors[pivots[:count]].T)
    return np.abs(vectors @ (left @ right)).argmax(1)


def _parts(
    weights: scipy.sparse.csr_array, settings: ClusterSettings, seed: int
) -> list[np.ndarray]:
    """Divides the items of a node, numbers into `weights`, into its children's, none empty."""
    linked = np.asarray(weights.sum(1)).ravel() > 0
    alone, members = np.flatnonzero(~linked), np.flatnonzero(linked)
    parts: list[np.ndarray] = []
    if len(members):
        labels = clusters_of(weights[members][:, members], settings.clusters, seed)
        parts = [members[labels == label] for label in np.unique(labels)]
    if len(parts) == 1 and len(members) > settings.most_items:
        parts = _cut(members, settings)
    return parts + ([alone] if len(alone) else [])


def _cut(items: np.ndarray, settings: ClusterSettings) -> list[np.ndarray]:
    """Cuts items into as many equal parts as leaves need, N at most."""
    needed = -(-len(items) // settings.most_items)
    return np.array_split(items, min(needed, settings.clusters))


def cluster_codes(
    weights: scipy.sparse.csr_array, settings: ClusterSettings, seed: int = 0
) -> tuple[np.ndarray, int]:
    """Makes the identifiers of a graph's items.

    Args:
      weights: [V, V], from `shared_users`.

    Returns:
      codes int32 [V, L], and how many symbols they have: tree nodes, then counters. NO_CODE fills
      the places after an identifier's last symbol.
    """
    paths: list[list[int]] = [[] for _ in range(weights.shape[0])]
    counters = np.zeros(weights.shape[0], np.int64)
    nodes = 0
    waiting = collections.deque([np.arange(weights.shape[0])])
    while waiting:
        items = waiting.popleft()
        own = weights[items][:, items]
        if own.nnz or not nodes:
            parts = [items[part] for part in _parts(own, settings, seed)]
        else:
            parts = _cut(items, settings)
        for part in parts:
            for item in part:
                paths[item].append(nodes)
            nodes += 1
            if len(part) > settings.most_items:
                waiting.append(part)
            else:
                counters[part] = np.arange(len(part))
    codes = np.full((len(paths), max(map(len, paths)) + 1), NO_CODE, np.int32)
    for item, path in enumerate(paths):
        codes[item, : len(path) + 1] = [*path, nodes + counters[item]]
    return codes, nodes + int(counters.max()) + 1


class P5CIDIdentifiers(FittedIdentifierExperiment):
    """Clusters a catalogue by its training clicks."""

    own_sections: ClassVar[Described] = {"model": (ClusterSettings,)}

    def fit(self) -> tuple[IdentifierTable, dict[str, Any]]:
        weights = shared_users(self.data.training_clicks())
        if not weights.nnz:
            raise UserError(
                f"expected two items of {self.data.label} that a user has both clicked in "
                "training, found none; use identifiers of the items' texts"
            )
        settings = ClusterSettings(**self.config.model.to_dict())
        codes, symbols = cluster_codes(weights, settings, self.config.seed)
        table = identifiers.of_one_alphabet(
            codes,
            symbols,
            data_hash=self.data.log.hash,
            training_split=self.data.training_split,
        )
        lengths = (codes != NO_CODE).sum(1)
        linked = np.asarray(weights.sum(1)).ravel() > 0
        return table, {
            "symbols": float(symbols),
            "mean_length": float(lengths.mean()),
            "longest": float(lengths.max()),
            "items_alone": float((~linked).mean()),
        }
