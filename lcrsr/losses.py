"""Computes the losses of pre-training: Eq. 9, 11 and 12, and those that may stand for Eq. 11.

A ranker's `loss` is one of `LOSSES`: 'bce' (Eq. 11) and 'cross_entropy' hold a target against its
own negatives, whatever scores them; 'sampled_softmax' and 'full_cross_entropy' hold it against all
items, estimated or not, and need scores that are dot products of one vector a user with items' rows
(`of_vectors`). A ranker whose scores are a network of user and item takes the first two
(`OF_PAIRS`). No loss has another home, so that a table that compares models compares no losses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import chex
import jax
import jax.numpy as jnp
import optax

from core.settings import Rule
from lcrsr.full_softmax import full_cross_entropy
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
# Name `sampled_softmax` and `full_softmax.full_cross_entropy`: of dot products alone.
SAMPLED, FULL = "sampled_softmax", "full_cross_entropy"
LOSSES = (*RECOMMENDATION, SAMPLED, FULL)
# The type of a setting that names a loss: `OfVectors` in a ranker that scores by dot products,
# `OfPairs` in any other.
OfVectors = Annotated[str, Rule(f"of {', '.join(LOSSES)}", LOSSES.__contains__, "set one of them")]
OfPairs = Annotated[
    str,
    Rule(
        f"of {', '.join(RECOMMENDATION)}",
        RECOMMENDATION.__contains__,
        "set one of them: a model that scores pairs of a user and an item by a network has no loss "
        "over all items",
    ),
]


def of_vectors(
    kind: str,
    users: jax.Array,
    batch: Mapping[str, jax.Array],
    rows: Mapping[str, jax.Array],
    items: jax.Array,
    part: slice = slice(None),
) -> jax.Array:
    """Returns any of `LOSSES` of users' vectors, whose products with items' rows are the scores.

    Args:
      users: [B, D].
      batch: with `candidates` [B, N], the target first, `labels` [B, N] and `mask` [B].
      rows: with `candidates` [B, N, D], which a loss over all items does not read.
      items: the whole table [V+1, D], or as it is packed, [.., k D].
      part: which rows of `batch` and `rows` the users are.
    """
    ids, mask = batch["candidates"][part], batch["mask"][part]
    if kind == FULL:
        weights = mask / jnp.maximum(mask.sum(), 1.0)
        return full_cross_entropy(users, items, any_target(ids, mask), weights)
    candidates = rows["candidates"][part]
    if kind == SAMPLED:
        return sampled_softmax(users, ids, candidates, mask, _item_count(items, users))
    logits = jnp.einsum("bd,bnd->bn", users, candidates)
    return RECOMMENDATION[kind](logits, batch["labels"][part], mask)


def of_states(
    kind: str,
    states: jax.Array,
    targets: jax.Array,
    own: jax.Array,
    counts: jax.Array,
    batch: Mapping[str, jax.Array],
    rows: Mapping[str, jax.Array],
    items: jax.Array,
) -> jax.Array:
    """Returns any of `LOSSES` where several places of a history have a target each.

    The places of a user share that user's negatives.

    Args:
      states: [B, L, D].
      targets: int32 [B, L], and their rows `own` [B, L, D].
      counts: [B, L], 0 for places without a target.
      batch, rows, items: as in `of_vectors`.
    """
    b, places, width = states.shape
    vectors, wanted, weights = states.reshape(-1, width), targets.ravel(), counts.ravel()
    if kind == FULL:
        each = weights / jnp.maximum(weights.sum(), 1)
        return full_cross_entropy(vectors, items, jnp.maximum(wanted, 1), each)
    ids, candidates = batch["candidates"][:, 1:], rows["candidates"][:, 1:]
    if kind == SAMPLED:
        return _shared_softmax(
            vectors,
            wanted,
            own.reshape(-1, width),
            weights,
            _first(ids, b),
            _first(candidates, b).reshape(-1, width),
            batch["mask"],
            _item_count(items, states),
        )
    of_own = jnp.einsum("bld,bld->bl", states, own)
    of_others = jnp.einsum("bld,bnd->bln", states, candidates)
    logits = jnp.concatenate([of_own[..., None], of_others], -1)
    logits = logits.reshape(b * places, -1)
    labels = jnp.zeros_like(logits).at[:, 0].set(1.0)
    return RECOMMENDATION[kind](logits, labels, weights)


def any_target(ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the targets of candidates [B, N]; rows that count nothing have any item, item 1."""
    return jnp.where(mask > 0, ids[:, 0], 1)


def _item_count(items: jax.Array, vectors: jax.Array) -> int:
    # Of the padding too: `sampled_softmax` says what that changes.
    return items.size // vectors.shape[-1]


def sampled_softmax(
    users: jax.Array, ids: jax.Array, rows: jax.Array, mask: jax.Array, num_items: int
) -> jax.Array:
    """Returns the softmax loss over all items of dot products, estimated from shared negatives.

    Every target is held against the negatives of the whole batch, which are uniform draws from all
    items: `num_items` over their number times the sum of their powers is an unbiased estimate of
    that over all items (the logQ correction of uniform draws). `of_vectors` and `of_states` count
    all of a table's rows as V, the padding's and those that fill a device's part up among them, so
    that each negative's logit is log(1 + 1/V) too high for one such row (.0013 with the embedded
    sample's 750 items, 8e-5 with Amazon Beauty's 12,101); published numbers are measured so.

    Args:
      users: [B, D].
      ids: int32 [B, N], the target first, then its own negatives.
      rows: [B, N, D], the vectors of `ids`.
      mask: [B], 0 for padding, whose negatives do not count.
      num_items: V.
    """
    b, width = users.shape
    negatives = _first(rows[:, 1:], b).reshape(-1, width)
    return _shared_softmax(
        users, ids[:, 0], rows[:, 0], mask, _first(ids[:, 1:], b), negatives, mask, num_items
    )


def _first(negatives: jax.Array, users: int) -> jax.Array:
    """Returns so many of each user's negatives [B, N, ...] as a batch shares."""
    # Enough for any batch; more would cost more than they teach.
    return negatives[:, : max(1, _MOST_SHARED // users)]


def _shared_softmax(vectors, targets, own, weights, ids, rows, mask, num_items):
    """Returns the weighted mean loss of vectors [n, D], of targets [n] with rows `own` [n, D].

    Args:
      ids: negatives, int32 [B, m], of rows [B m, D].
      mask: [B], 0 for users whose negatives do not count.
    """
    real = jnp.repeat(mask > 0, ids.shape[1])
    of_own = jnp.einsum("bd,bd->b", vectors, own).astype(jnp.float32)
    logits = (vectors @ rows.T).astype(jnp.float32)
    counts = real & (ids.reshape(-1) != targets[:, None])
    correction = jnp.log(num_items / jnp.maximum(real.sum(), 1))
    logits = jnp.where(counts, logits + correction, -jnp.inf)
    losses = jax.nn.logsumexp(jnp.concatenate([of_own[:, None], logits], 1), -1) - of_own
    return (losses * weights).sum() / jnp.maximum(weights.sum(), 1.0)


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
