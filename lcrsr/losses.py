"""Computes the losses of pre-training: Eq. 9, 11 and 12."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from lcrsr.latent_reasoning import final_state
from lcrsr.model import Outputs

DISTANCES = ("cosine", "euclidean")
STOP_GRADIENTS = ("none", "h_plain", "both")
# Negatives that all targets of a batch share, about.
_MOST_SHARED = 8192


def distance(a: jax.Array, b: jax.Array, kind: str) -> jax.Array:
    """Returns d(a, b) over the last axis [..., D]: 1 - cosine in [0, 2], or the Euclidean distance.

    Both have finite gradients at zero vectors and at a = b.
    """
    if kind == "cosine":
        return 1.0 - optax.cosine_similarity(a, b, epsilon=1e-6)
    if kind == "euclidean":
        return optax.safe_norm(a - b, 1e-6, axis=-1)
    raise ValueError(f"expected distance in {DISTANCES}, found {kind!r}")


def distillation(logits: jax.Array, teacher: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the mean over real users of KL(softmax(teacher) || softmax(logits)), in nats.

    Args:
      logits, teacher: [B, N] of the same candidates; the teacher gets no gradient.
      mask: [B], 0 for rows that are no users.
    """
    chex.assert_equal_shape([logits, teacher])
    ours, wanted = (
        jax.nn.log_softmax(scores.astype(jnp.float32))
        for scores in (logits, jax.lax.stop_gradient(teacher))
    )
    divergence = optax.losses.kl_divergence_with_log_targets(ours, wanted)
    return (divergence * mask).sum() / jnp.maximum(mask.sum(), 1.0)


def contrastive(
    target: jax.Array,
    cross: jax.Array,
    plain: jax.Array,
    weight: jax.Array,
    *,
    margin: float | jax.Array,
    distance_kind: str,
    stop_gradient: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns one side of Eq. 9: mean over users of max(d(e, h) - d(e, h~) + m, 0).

    A hinge can be won by pushing h~ away, so its two distances are returned apart.

    Args:
      target: raw e_v of the positive item [B, D].
      cross, plain: h^(K) with and without cross-attention [B, D].
      weight: [B], 0 for users that do not count; the mean is over B's real users, which the
        caller's weights sum to at most 1 over.
      margin: m.
      distance_kind: 'cosine' or 'euclidean'.
      stop_gradient: 'none' (printed); 'h_plain' gives h~ no gradient; 'both' gives the target none
        either.

    Returns:
      (loss, weighted d(e, h), weighted d(e, h~)).
    """
    chex.assert_equal_shape([target, cross, plain])
    if stop_gradient not in STOP_GRADIENTS:
        raise ValueError(f"expected stop_gradient in {STOP_GRADIENTS}, found {stop_gradient!r}")
    if stop_gradient in ("h_plain", "both"):
        plain = jax.lax.stop_gradient(plain)
    if stop_gradient == "both":
        target = jax.lax.stop_gradient(target)
    near = distance(target, cross.astype(jnp.float32), distance_kind)
    far = distance(target, plain.astype(jnp.float32), distance_kind)
    hinge = jnp.maximum(near - far + margin, 0.0)
    return (hinge * weight).sum(), (near * weight).sum(), (far * weight).sum()


def contrastive_from_outputs(
    outputs: Outputs,
    target: jax.Array,
    active_steps: jax.Array,
    mask: jax.Array,
    *,
    margin: float | jax.Array,
    distance: str,
    stop_gradient: str,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns Eq. 9 on both sides; zero for K = 0 and for users one of whose histories is empty.

    Args:
      target: raw rows of the positive items [B, D].
      mask: [B], 0 for padding; the mean is over all real users.

    Returns:
      (L_TCL, the distances of both sides and kinds, averaged over the users that count).
    """
    histories = outputs.histories
    both = histories.rec.mask.any(-1) & histories.search.mask.any(-1)
    counts = both * mask * (active_steps > 0)
    weight = counts / jnp.maximum(mask.sum(), 1.0)
    share = jnp.maximum(weight.sum(), 1e-9)
    total = jnp.float32(0.0)
    statistics: dict[str, jax.Array] = {}
    for side in ("rec", "search"):
        start = getattr(histories, side).start
        loss, near, far = contrastive(
            target,
            final_state(getattr(outputs.cross, side), start, active_steps),
            final_state(getattr(outputs.plain, side), start, active_steps),
            weight,
            margin=margin,
            distance_kind=distance,
            stop_gradient=stop_gradient,
        )
        total += loss
        statistics |= {
            f"distance_{side}_cross": near / share,
            f"distance_{side}_plain": far / share,
        }
    return total, statistics


def bce(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns Eq. 11 from logits: the mean of the binary cross-entropy over all (user, item) pairs.

    Args:
      logits, labels: [B, N].
      mask: [B], 0 for padding.
    """
    chex.assert_equal_shape([logits, labels])
    losses = optax.sigmoid_binary_cross_entropy(logits, labels).mean(-1)
    return (losses * mask).sum() / jnp.maximum(mask.sum(), 1.0)


def cross_entropy(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the softmax loss over the target and its sampled negatives, in Eq. 11's place.

    Args:
      logits, labels: [B, N]; labels are one-hot.
      mask: [B], 0 for padding.
    """
    chex.assert_equal_shape([logits, labels])
    losses = optax.softmax_cross_entropy(logits, labels)
    return (losses * mask).sum() / jnp.maximum(mask.sum(), 1.0)


RECOMMENDATION = {"bce": bce, "cross_entropy": cross_entropy}
# Names `sampled_softmax`, the loss of rankers that score by a dot product.
SAMPLED = "sampled_softmax"


def sampled_softmax(
    users: jax.Array, ids: jax.Array, rows: jax.Array, mask: jax.Array, num_items: int
) -> jax.Array:
    """Returns the softmax loss over all items of dot products, estimated from shared negatives.

    Every target is held against the negatives of the whole batch, which are uniform draws from all
    items: `num_items` over their number times the sum of their powers is an unbiased estimate of
    that over all items (the logQ correction of uniform draws).

    Args:
      users: [B, D].
      ids: int32 [B, N], the target first, then its own negatives.
      rows: [B, N, D], the vectors of `ids`.
      mask: [B], 0 for padding, whose negatives do not count.
      num_items: V.
    """
    b, n = ids.shape
    # Enough for any batch; more would cost more than they teach.
    columns = min(n - 1, max(1, _MOST_SHARED // b))
    shared = slice(1, 1 + columns)
    real = jnp.repeat(mask > 0, columns)
    own = jnp.einsum("bd,bd->b", users, rows[:, 0]).astype(jnp.float32)
    negatives = rows[:, shared].reshape(b * columns, -1)
    logits = (users @ negatives.T).astype(jnp.float32)
    counts = real & (ids[:, shared].reshape(-1) != ids[:, :1])
    correction = jnp.log(num_items / jnp.maximum(real.sum(), 1))
    logits = jnp.where(counts, logits + correction, -jnp.inf)
    losses = jax.nn.logsumexp(jnp.concatenate([own[:, None], logits], 1), -1) - own
    return (losses * mask).sum() / jnp.maximum(mask.sum(), 1.0)


def l2(params: Any, touched: Iterable[jax.Array]) -> jax.Array:
    """Returns ||Phi||^2 of Eq. 12 on what the batch touched.

    Args:
      params: the network's parameters; matrices count, biases and norms do not.
      touched: per table the distinct rows [u, D] that the batch names, so that a row counts once
        however often it does.
    """
    squares = [jnp.sum(jnp.square(p)) for p in jax.tree.leaves(params) if p.ndim >= 2]
    squares += [jnp.sum(jnp.square(rows)) for rows in touched]
    return jnp.sum(jnp.stack(squares))
