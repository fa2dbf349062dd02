"""Computes group relative policy optimization, Eq. 15-17 of LCR-SER, for any policy.

A group is the G trajectories of one example; axes are [G, B].
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def advantages(rewards: jax.Array) -> jax.Array:
    """Returns A_i = (r_i - mean r) / std r over the group, Eq. 17.

    The population standard deviation, without an epsilon; a group of equal rewards gets zeros.

    Args:
      rewards: float [G, B].

    Returns:
      float [G, B], no gradient.
    """
    chex.assert_rank(rewards, 2)
    rewards = jax.lax.stop_gradient(rewards)
    centred = rewards - rewards.mean(0)
    # Compared before centring: a mean of equal rewards can differ from them by a rounding.
    unequal = rewards.max(0) > rewards.min(0)
    deviation = jnp.sqrt((centred**2).mean(0))
    return jnp.where(unequal, centred / jnp.where(unequal, deviation, 1.0), 0.0)


def kl_k3(log_prob: jax.Array, reference: jax.Array) -> jax.Array:
    """Returns ref/p - log(ref/p) - 1, Eq. 16, from log-probabilities [...]; never negative."""
    chex.assert_equal_shape([log_prob, reference])
    difference = reference - log_prob
    return jnp.maximum(jnp.expm1(difference) - difference, 0.0)  # rounding may go below 0


def objective(
    log_prob: jax.Array,
    old_log_prob: jax.Array,
    reference_log_prob: jax.Array,
    advantage: jax.Array,
    mask: jax.Array,
    *,
    kl_weight: float | jax.Array,
    clip_eps: float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns J of Eq. 15, to be maximised, and what to log.

    Args:
      log_prob, old_log_prob, reference_log_prob: log pi(target | T_i) of the current, the old and
        the reference policy, float [G, B]; gradients flow through the first only.
      advantage: [G, B], from `advantages`.
      mask: [B], 0 for padding.
      kl_weight: lambda_KL.
      clip_eps: clips the ratio to [1 - eps, 1 + eps] as PPO does; None clips nothing, as printed.

    Returns:
      (scalar, statistics).
    """
    chex.assert_equal_shape([log_prob, old_log_prob, reference_log_prob, advantage])
    ratio = jnp.exp(log_prob - jax.lax.stop_gradient(old_log_prob))
    gain = ratio * advantage
    if clip_eps is not None:
        gain = jnp.minimum(gain, jnp.clip(ratio, 1 - clip_eps, 1 + clip_eps) * advantage)
    kl = kl_k3(log_prob, jax.lax.stop_gradient(reference_log_prob))
    examples = jnp.maximum(mask.sum(), 1.0)

    def mean(values):
        return (values.mean(0) * mask).sum() / examples

    statistics = {
        "kl": mean(kl),
        "ratio": mean(ratio),
        "unequal_groups": ((advantage != 0).any(0) * mask).sum() / examples,
    }
    return mean(gain) - kl_weight * statistics["kl"], statistics
