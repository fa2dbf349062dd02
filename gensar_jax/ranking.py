"""Ranks of target items from GenSAR's beams: among sampled candidates, or the whole catalogue."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from core import trie as tries
from core.beam_search import Beams
from core.partitioning import Partition
from core.trie import Trie
from gensar_jax.generation import generate
from gensar_jax.t5.network import Transformer

# Items above a target that the beam dropped: more than any cutoff, so that it is a miss.
MISSED = 1 << 20


class Ranks(NamedTuple):
    """Holds of each row [B]: items above the target, tied with it, and whether a score is NaN."""

    above: jax.Array
    tied: jax.Array
    broken: jax.Array


def ranks_of(beams: Beams, target: jax.Array, removed: jax.Array) -> Ranks:
    """Tells where targets stand among what a beam found.

    Args:
      beams: of B users.
      target: int32 [B].
      removed: int32 [B, S], items that do not count; 0 is padding, and a target always counts.
    """
    own = beams.items == target[:, None]
    counts = (beams.items >= 0) & ~own
    counts &= (beams.items[:, :, None] != removed[:, None]).all(-1)
    score = jnp.where(own, beams.scores, -jnp.inf).max(-1, keepdims=True)
    reached = own.any(-1)
    above = (counts & (beams.scores > score)).sum(-1)
    tied = (counts & (beams.scores == score)).sum(-1)
    return Ranks(
        jnp.where(reached, above, MISSED).astype(jnp.int32),
        jnp.where(reached, tied, 0).astype(jnp.int32),
        jnp.isnan(beams.scores).any(-1),
    )


class BeamRanker:
    """Ranks with a network; one compilation a shape and width.

    Args:
      network: T5.
      partition: the mesh that users are cut over; None means one device.
      length_penalty: as in `generation.generate`.
    """

    def __init__(
        self,
        network: Transformer,
        partition: Partition | None = None,
        length_penalty: float = 0.0,
    ):
        self._network, self._partition, self._penalty = network, partition, length_penalty
        whole = None if partition is None else partition.replicated
        self.sampled = jax.jit(self._sampled, static_argnames="width", out_shardings=whole)
        self.full = jax.jit(self._full, static_argnames="width", out_shardings=whole)
        self._copy = jax.jit(lambda params: params, out_shardings=whole)

    def place_params(self, params: Any) -> Any:
        """Puts the whole network on every device, as ranking wants it."""
        return params if self._partition is None else self._copy(params)

    def place(self, batch: Any) -> Any:
        """Arrays [B, ...] of B users over the devices."""
        return batch if self._partition is None else self._partition.put_batch(batch)

    def _generate(
        self, params: Any, inputs: jax.Array, forced: jax.Array, trie: Trie, width: int
    ) -> Beams:
        network, penalty = self._network, self._penalty
        return generate(network, params, inputs, forced, trie, width, length_penalty=penalty)

    def _sampled(
        self,
        params: Any,
        inputs: jax.Array,
        forced: jax.Array,
        identifiers: jax.Array,
        candidates: jax.Array,
        *,
        width: int,
    ) -> Ranks:
        """Ranks of column 0 among the candidates.

        Args:
          inputs, forced: as in `generation.generate`.
          identifiers: int32 [V+1, L], tokens of the items.
          candidates: int32 [B, N].
          width: N scores every candidate (exact); with fewer what the beam drops is a miss.
        """
        trie = tries.of_candidates(identifiers, candidates, jnp.ones_like(candidates, bool))
        beams = self._generate(params, inputs, forced, trie, width)
        return ranks_of(beams, candidates[:, 0], jnp.zeros_like(candidates[:, :1]))

    def _full(
        self,
        params: Any,
        inputs: jax.Array,
        forced: jax.Array,
        trie: Trie,
        target: jax.Array,
        removed: jax.Array,
        *,
        width: int,
    ) -> Ranks:
        """Ranks of targets [B] in the catalogue without `removed` [B, S]."""
        beams = self._generate(params, inputs, forced, trie, width)
        return ranks_of(beams, target, removed)
