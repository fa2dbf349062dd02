"""Computes R-GRPO, Eq. 7-8 of CRS, and plain GRPO behind the same functions.

Axis letters: G trajectories of one user, B users, K answers of one trajectory, T tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from core.grpo import kl_k3

ALGORITHMS = ("r_grpo", "grpo")


def rank_weights(answers: int, log_base: float = math.e) -> np.ndarray:
    """Returns 1 / (1 + log n) / W of Eq. 7 for n = 1..K, float32 [K]; they sum to 1."""
    weights = 1.0 / (1.0 + np.log(np.arange(1, answers + 1)) / math.log(log_base))
    return (weights / weights.sum()).astype(np.float32)


class Outcome(NamedTuple):
    """Holds what a trajectory is optimised for.

    Attributes:
      answer: int32 [G, B], the place of o*'s answer among the K, best ranked first.
      reward: float32 [G, B], r*.
    """

    answer: jax.Array
    reward: jax.Array


def outcome(rewards: jax.Array, algorithm: str, log_base: float = math.e) -> Outcome:
    """Returns o* and r* of each trajectory.

    'r_grpo' is Eq. 7: the answer of the highest reward (the best ranked of equals), and the rewards
    of all answers weighted by rank. 'grpo' takes the first answer and its reward.

    Args:
      rewards: float [G, B, K], of a beam's answers, best ranked first.

    Raises:
      ValueError: no such algorithm.
    """
    chex.assert_rank(rewards, 3)
    if algorithm not in ALGORITHMS:
        raise ValueError(f"expected an algorithm of {', '.join(ALGORITHMS)}, found {algorithm!r}")
    if algorithm == "grpo":
        return Outcome(jnp.zeros(rewards.shape[:2], jnp.int32), rewards[..., 0])
    weighted = (rewards * rank_weights(rewards.shape[-1], log_base)).sum(-1)
    return Outcome(jnp.argmax(rewards, -1).astype(jnp.int32), weighted)


def objective(
    log_prob: jax.Array,
    old_log_prob: jax.Array,
    reference_log_prob: jax.Array,
    advantage: jax.Array,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: float,
    kl_weight: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns J of Eq. 8, to be maximised, and what to log.

    The ratio is clipped and the KL (k3) taken per token; a trajectory is the mean over its |o*|
    tokens, a user the mean over trajectories.

    Args:
      log_prob, old_log_prob, reference_log_prob: of each token of o* under the current, the old and
        the reference policy, float [G, B, T]; gradients flow through the first only.
      advantage: float [G, B], from `core.grpo.advantages`.
      tokens: [G, B, T], 1 for tokens of o*, 0 for padding.
      mask: [B], 0 for users that do not count.
      clip_eps, kl_weight: epsilon and beta.

    Returns:
      (scalar, statistics).
    """
    chex.assert_equal_shape([log_prob, old_log_prob, reference_log_prob, tokens])
    chex.assert_shape(advantage, log_prob.shape[:2])
    # Padding may hold anything, infinities included.
    counts = tokens > 0
    current = jnp.where(counts, log_prob, 0.0)
    old = jnp.where(counts, jax.lax.stop_gradient(old_log_prob), 0.0)
    reference = jnp.where(counts, jax.lax.stop_gradient(reference_log_prob), 0.0)
    ratio = jnp.exp(current - old)
    clipped = jnp.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps)
    gain = jnp.minimum(ratio * advantage[..., None], clipped * advantage[..., None])
    kl = kl_k3(current, reference)
    users = jnp.maximum(mask.sum(), 1.0)

    def mean(values):
        each = (values * counts).sum(-1) / jnp.maximum(counts.sum(-1), 1)
        return (each.mean(0) * mask).sum() / users

    statistics = {
        "kl": mean(kl),
        "ratio": mean(ratio),
        "clipped": mean((ratio != clipped).astype(jnp.float32)),
        "unequal_groups": ((advantage != 0).any(0) * mask).sum() / users,
    }
    return mean(gain) - kl_weight * statistics["kl"], statistics
