"""Answers in two steps, 3.4 of CRS: greedy reasoning, then a beam held to the catalogue's trie.

Or, after the same reasoning, the scores of given items.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from core.partitioning import Partition
from core.trie import Trie
from crs_jax import generation, lora
from crs_jax.decoder import Decoder
from crs_jax.generation import Place, Sampling
from crs_jax.rl_task import Tokens

# Items above a target that the beam dropped: more than any cutoff, so that it is a miss.
MISSED = 1 << 20


@dataclasses.dataclass(frozen=True)
class Answers:
    """Holds what a network answered; E prompts, K items, R reasoning tokens.

    Attributes:
      items: int32 [E, K], best first; -1 in places that are left over.
      scores: float32 [E, K], log-likelihoods of the ids after the reasoning, in nats.
      reasoning: int32 [E, R], up to </think>, which is a part of it where it came; R is 0 without
        reasoning.
      lengths: int32 [E].
    """

    items: np.ndarray
    scores: np.ndarray
    reasoning: np.ndarray
    lengths: np.ndarray

    def ranks(
        self, target: np.ndarray, left_out: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Counts the items above each target and tied with it, and tells where a score is NaN.

        Args:
          target: int32 [E].
          left_out: int32 [E, S], items that do not count, such as the other clicks of the same
            search; 0 is padding.

        Returns:
          int [E], int [E] and bool [E].
        """
        own = self.items == target[:, None]
        score = np.where(own, self.scores, -np.inf).max(1, keepdims=True)
        others = (self.items >= 0) & ~own
        others &= (self.items[:, :, None] != left_out[:, None]).all(-1)
        above = (others & (self.scores > score)).sum(1)
        tied = (others & (self.scores == score)).sum(1)
        answered = own.any(1)
        broken = np.isnan(self.scores).any(1)
        return np.where(answered, above, MISSED), np.where(answered, tied, 0), broken


class Inference:
    """Answers prompts in batches; one compilation a width, or a number of given answers.

    Args:
      network, controls, trie: see there.
      max_reasoning: tokens of the reasoning at most, </think> included.
      batch_size: prompts at once.
      partition: the mesh that parameters lie on, over which prompts are cut; None for one device.
    """

    def __init__(
        self,
        network: Decoder,
        controls: Tokens,
        trie: Trie,
        *,
        max_reasoning: int,
        batch_size: int,
        partition: Partition | None = None,
    ):
        self.network, self._batch_size, self._partition = network, batch_size, partition
        self._trie = trie if partition is None else partition.put_whole(trie)
        self._stops = (controls.end_think, controls.end)
        self._sampling = Sampling(max_tokens=max_reasoning, temperature=0.0)
        # Every process reads all that is found.
        everywhere = None if partition is None else partition.replicated
        self._answer = jax.jit(
            self._answers, static_argnames=("width", "reason"), out_shardings=everywhere
        )
        self._score = jax.jit(self._scores, static_argnames=("reason",), out_shardings=everywhere)

    def begin(self, whole, prompts, lengths, reason: bool) -> tuple[Place, Any, Any]:
        """Returns where the answers to prompts begin; the reasoning [B, R] before them, its
        lengths [B].
        """
        prompted = generation.read_prompts(self.network, whole, prompts, lengths)
        if not reason:
            return generation.after_prompt(prompted, prompts), prompts[:, :0], lengths * 0
        # Greedy: the key draws nothing.
        samples = generation.sample(
            self.network, whole, prompted, jax.random.key(0), 1, self._sampling, self._stops
        )
        place = generation.after_reasoning(prompted, samples, self._stops)
        return place, samples.tokens[:, 0], samples.lengths[:, 0]

    def _answers(self, params, trie, prompts, lengths, *, width: int, reason: bool) -> Any:
        whole = lora.whole(params)
        place, *said = self.begin(whole, prompts, lengths, reason)
        beams = generation.constrained_answers(self.network, whole, place, trie, width)
        return beams.items[:, 0], beams.scores[:, 0], *said

    def _scores(self, params, prompts, lengths, answers, *, reason: bool) -> Any:
        whole = lora.whole(params)
        place, *_ = self.begin(whole, prompts, lengths, reason)
        return (generation.answer_log_probs(self.network, whole, place, answers),)

    def _batched(self, compute: Callable[..., Any], *arrays: np.ndarray) -> list[np.ndarray]:
        """Returns the outputs of `compute` on all rows, `batch_size` of them at once."""
        size, count = self._batch_size, len(arrays[0])
        outputs = []
        for start in range(0, count, size):
            rows = np.arange(start, start + size)
            real = rows < count
            rows = np.where(real, rows, 0)
            batch = tuple(array[rows] for array in arrays)
            if self._partition is not None:
                batch = self._partition.put_batch(batch)
            outputs.append([np.asarray(part)[real] for part in compute(*batch)])
        return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]

    def __call__(
        self, params: Any, prompts: np.ndarray, lengths: np.ndarray, *, width: int, reason: bool
    ) -> Answers:
        """Returns answers to prompts int32 [E, T] of lengths [E].

        Args:
          params: as a stage holds them.
          width: of the beam.
          reason: the prompts end in <think>; False for prompts that ask for the id at once.
        """
        compute = functools.partial(self._answer, params, self._trie, width=width, reason=reason)
        return Answers(*self._batched(compute, prompts, lengths))

    def scores(
        self,
        params: Any,
        prompts: np.ndarray,
        lengths: np.ndarray,
        answers: np.ndarray,
        *,
        reason: bool,
    ) -> np.ndarray:
        """Returns log-likelihoods float32 [E, N] in nats of answers int32 [E, N, L] to prompts.

        The ids of the items that a beam has found get the beam's own scores.

        Args:
          params, prompts, lengths, reason: as of a call.
        """
        compute = functools.partial(self._score, params, reason=reason)
        return self._batched(compute, prompts, lengths, answers)[0]
