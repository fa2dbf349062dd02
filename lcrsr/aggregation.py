"""Computes target-aware aggregation (Eq. 8) and the prediction MLP (Eq. 10).

The first MLP layer is a sum over its four inputs, so it is kept as four blocks: the user's part is
computed once a user, the item's once an item, and for a whole catalogue (`score_shared`) the
histories' parts move into the history rows, before the weighted sum instead of after it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp

from lcrsr.attention import masked_softmax, shared_mixtures, shared_products

ATTENTIONS = ("bilinear", "scaled_dot", "mean")
# Of a whole catalogue. A CPU takes as many of these parts of a user's rows as are filled; elsewhere
# so many users are scored at once, which bounds the memory.
_PARTS, _USERS_AT_ONCE = 4, 64


class ScorerWeights(NamedTuple):
    """Holds Eq. 8's W a side [D, D], and the MLP of Eq. 10.

    `user`, `search`, `rec`, `item` [D, F1] are the blocks of its first kernel for e_u, w_s, w_r,
    e_v; `rest` holds the further layers as (kernel, bias), ending in width 1.
    """

    rec_bilinear: jax.Array
    search_bilinear: jax.Array
    user: jax.Array
    search: jax.Array
    rec: jax.Array
    item: jax.Array
    first_bias: jax.Array
    rest: tuple[tuple[jax.Array, jax.Array], ...]


class Side(NamedTuple):
    """Holds one side's rows of H^(K), in one or several parts.

    Attributes:
      parts: [V, R_i, D] each; a part of V < B windows is shared by B / V users in order.
      mask: bool [B, R], which of the users' rows are valid.
    """

    parts: tuple[jax.Array, ...]
    mask: jax.Array

    def rows(self) -> jax.Array:
        """Returns the rows [B, R, D] of users who share none."""
        return jnp.concatenate(self.parts, 1)


def _identity(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    del key
    return jnp.eye(shape[0], shape[1])


def _start_on_differences(item_scale: float) -> Callable[..., jax.Array]:
    """Starts with Xavier for e_u, w_s and w_r, and with a block of e_v that undoes w_s's and w_r's.

    The MLP of a concatenation has to find by itself that nearness of e_v to w_s and w_r matters,
    and training stood still for hundreds of updates until it did (docs/decisions.md). Here it
    starts as a function of w - e_v / item_scale: rows of standard deviation `item_scale` against
    states that a layer norm brings to 1.
    """

    def init(key, shape):
        user, search, rec, _ = jnp.split(nn.initializers.xavier_uniform()(key, shape), 4)
        return jnp.concatenate([user, search, rec, -(search + rec) / item_scale])

    return init


class Scorer(nn.Module):
    """Holds `ScorerWeights`."""

    width: int
    mlp_widths: tuple[int, ...]
    item_scale: float

    @nn.compact
    def __call__(self) -> ScorerWeights:
        d, xavier, zeros = self.width, nn.initializers.xavier_uniform(), nn.initializers.zeros
        # Eq. 8 starts as the dot product of e_v with the rows.
        rec_bilinear = self.param("rec_bilinear", _identity, (d, d))
        search_bilinear = self.param("search_bilinear", _identity, (d, d))
        start = _start_on_differences(self.item_scale)
        first = self.param("mlp_0_kernel", start, (4 * d, self.mlp_widths[0]))
        first_bias = self.param("mlp_0_bias", zeros, (self.mlp_widths[0],))
        widths = (*self.mlp_widths, 1)
        rest = tuple(
            (
                self.param(f"mlp_{i}_kernel", xavier, (widths[i - 1], widths[i])),
                self.param(f"mlp_{i}_bias", zeros, (widths[i],)),
            )
            for i in range(1, len(widths))
        )
        user, search, rec, item = jnp.split(first, 4)
        return ScorerWeights(
            rec_bilinear, search_bilinear, user, search, rec, item, first_bias, rest
        )


def weights_of_rows(
    side: Side, bilinear: jax.Array, candidates: jax.Array, attention: str
) -> jax.Array:
    """Computes the attention of candidates over a side's rows, Eq. 8, in float32.

    Args:
      candidates: [B, N, D], or [N, D] shared by all users.

    Returns:
      [B, N, R], summing to 1 over the valid rows.
    """
    b, rows = side.mask.shape
    n = candidates.shape[-2]
    if attention == "mean":
        uniform = side.mask / side.mask.sum(-1, keepdims=True)
        return jnp.broadcast_to(uniform[:, None].astype(jnp.float32), (b, n, rows))
    parts = side.parts if candidates.ndim == 3 else (side.rows(),)
    logits = [_logits_of_rows(part, bilinear, candidates, attention) for part in parts]
    return masked_softmax(jnp.concatenate(logits, -1), side.mask[:, None])


def _logits_of_rows(
    rows: jax.Array, bilinear: jax.Array, candidates: jax.Array, attention: str
) -> jax.Array:
    """Returns what `weights_of_rows` takes the softmax of, [B, N, R]."""
    keys = _keys(rows, bilinear, attention)
    if candidates.ndim == 3:
        return shared_products(candidates, keys)
    return jnp.einsum("nd,brd->bnr", candidates, keys)


def _mixed(mixing: jax.Array, side: Side) -> jax.Array:
    """Returns a side's rows summed with weights [B, N, R]: [B, N, D]."""
    total, start = jnp.zeros((), mixing.dtype), 0
    for part in side.parts:
        length = part.shape[1]
        total = total + shared_mixtures(mixing[..., start : start + length], part)
        start += length
    return total


def _keys(rows: jax.Array, bilinear: jax.Array, attention: str) -> jax.Array:
    """Returns rows [..., D] that candidates are multiplied with in Eq. 8."""
    return rows @ bilinear.T if attention == "bilinear" else rows * rows.shape[-1] ** -0.5


def _finish(weights: ScorerWeights, first: jax.Array) -> jax.Array:
    """Applies the MLP after its first layer's sum [..., F1]; logits float32 [...]."""
    x = first
    for kernel, bias in weights.rest:
        x = jax.nn.relu(x) @ kernel + bias
    return x[..., 0].astype(jnp.float32)


def score(
    weights: ScorerWeights,
    rec: Side,
    search: Side,
    user: jax.Array,
    candidates: jax.Array,
    attention: str,
) -> jax.Array:
    """Logits of Eq. 10 for each user's candidates.

    Args:
      rec, search: rows of H^(K), R on each side.
      user: e_u [B, D].
      candidates: e_v [B, N, D] of each user's own, or [N, D] shared by all.

    Returns:
      float32 [B, N].
    """
    if candidates.ndim == 2:
        of_rec, of_search = (rec.rows(), rec.mask), (search.rows(), search.mask)
        return score_shared(weights, of_rec, of_search, user, candidates, attention)
    dtype = candidates.dtype
    of_items = candidates @ weights.item
    first = (user @ weights.user + weights.first_bias)[:, None] + of_items
    sides = (
        (search, weights.search_bilinear, weights.search),
        (rec, weights.rec_bilinear, weights.rec),
    )
    mixings = [
        weights_of_rows(side, bilinear, candidates, attention).astype(dtype)
        for side, bilinear, _ in sides
    ]
    for mixing, (side, _, block) in zip(mixings, sides, strict=True):
        first += _mixed(mixing, side) @ block
    return _finish(weights, first)


def score_shared(
    weights: ScorerWeights,
    rec: tuple[jax.Array, jax.Array],
    search: tuple[jax.Array, jax.Array],
    user: jax.Array,
    items: jax.Array,
    attention: str,
) -> jax.Array:
    """Returns the logits of Eq. 10 of one list of items for every user.

    There are far fewer rows than items: rows are mapped by Eq. 8's W and by the MLP's first layer,
    the user's part is added to the rows of one side, whose weights sum to 1, and both sides are
    mixed in one product. Items lie along the last axis throughout, so that each product is of two
    plain matrices and each elementwise pass, the softmax over rows among them, runs along items. A
    CPU takes users one by one, so that intermediates stay in its caches, and leaves out invalid
    rows, a quarter at a time.

    Args:
      rec, search: rows of H^(K) [B, R, D] with their mask, bool [B, R]; R may differ.
      user: e_u [B, D].
      items: e_v [N, D].

    Returns:
      float32 [B, N].
    """
    items_last = items.T
    of_items = weights.item.T @ items_last
    of_user = user @ weights.user + weights.first_bias
    sides = (
        _mapped_rows(*search, weights.search_bilinear, weights.search, attention, of_user),
        _mapped_rows(*rec, weights.rec_bilinear, weights.rec, attention, jnp.zeros_like(of_user)),
    )

    def score_user(part, sides):
        """Scores for one user from the first `part` of the `_PARTS` of each side's rows."""
        counts = [-(-mask.shape[0] * part // _PARTS) for _, _, mask in sides]
        keys, mapped, masks = zip(
            *((k[:n], m[:, :n], v[:n]) for (k, m, v), n in zip(sides, counts, strict=True)),
            strict=True,
        )
        logits = jnp.split(jnp.concatenate(keys) @ items_last, counts[:1])
        of_sides = [_softmax_over_rows(*side) for side in zip(logits, masks, strict=True)]
        mixing = jnp.concatenate(of_sides).astype(items.dtype)
        x = jnp.concatenate(mapped, 1) @ mixing + of_items
        for kernel, bias in weights.rest:
            x = kernel.T @ jax.nn.relu(x) + bias[:, None]
        return x[0].astype(jnp.float32)

    def one_by_one(sides):
        parts = [-(-_PARTS * mask.sum(1) // mask.shape[1]) for _, _, mask in sides]
        branches = [functools.partial(score_user, part) for part in range(1, _PARTS + 1)]
        return jax.lax.map(
            lambda user: jax.lax.switch(user[0] - 1, branches, user[1]),
            (jnp.maximum(*parts), sides),
        )

    def together(sides):
        score_all_rows = functools.partial(score_user, _PARTS)
        if jax.export.is_symbolic_dim(user.shape[0]):  # of an export, whose batches are small
            return jax.vmap(score_all_rows)(sides)
        return jax.lax.map(score_all_rows, sides, batch_size=_USERS_AT_ONCE)

    return jax.lax.platform_dependent(sides, cpu=one_by_one, default=together)


def _mapped_rows(rows, mask, bilinear, block, attention, of_user):
    """Maps one side's rows [B, R, D] by Eq. 8's W and by the MLP's first layer, valid ones first.

    Returns:
      Keys [B, R, D], the mapped rows plus `of_user`, [B, F1, R], and which are valid, bool [B, R].
      A user without any gets zeros that are valid, so that `of_user` counts for him too.
    """
    none = ~mask.any(1, keepdims=True)
    rows, mask = jnp.where(none[..., None], 0.0, rows), mask | none
    if attention == "mean":
        # The same for every item: one row, whose weight is 1.
        uniform = (mask / mask.sum(1, keepdims=True)).astype(rows.dtype)
        rows = jnp.einsum("br,brd->bd", uniform, rows)[:, None]
        mask = jnp.ones_like(mask[:, :1])
    order = jnp.argsort(~mask, axis=1, stable=True)
    rows = jnp.take_along_axis(rows, order[..., None], 1)
    mask = jnp.take_along_axis(mask, order, 1)
    mapped = jnp.swapaxes(rows @ block + of_user[:, None], 1, 2)
    return _keys(rows, bilinear, attention), mapped, mask


def _softmax_over_rows(logits, mask):
    """Computes the softmax of logits [R, N] over the valid rows, of which there is one at least."""
    logits = jnp.where(mask[:, None], logits.astype(jnp.float32), -jnp.inf)
    weights = jnp.exp(logits - logits.max(0))
    return weights * (1.0 / weights.sum(0))


def score_every_k(
    weights: ScorerWeights,
    rec: tuple[Side, jax.Array],
    search: tuple[Side, jax.Array],
    user: jax.Array,
    candidates: jax.Array,
    attention: str,
) -> jax.Array:
    """Returns the logits of `score` for 0, 1, .., K reasoning rows, from one pass.

    A further row k moves Eq. 8's sum c by a_k (h_k - c), a_k its weight among the rows so far, so
    that the histories are aggregated once and a step costs the MLP's further layers.

    Args:
      rec, search: H with its mask, and h^(1..K) [B, K, D].

    Returns:
      float32 [K+1, B, N].
    """
    dtype = candidates.dtype
    first = (user @ weights.user + weights.first_bias)[:, None] + candidates @ weights.item
    parts = []
    for (history, states), bilinear, block in (
        (search, weights.search_bilinear, weights.search),
        (rec, weights.rec_bilinear, weights.rec),
    ):
        mixing = weights_of_rows(history, bilinear, candidates, attention).astype(dtype)
        part = jnp.einsum("bnr,brd->bnd", mixing, history.rows()) @ block
        if attention == "mean":
            total = jnp.log(history.mask.sum(-1).astype(jnp.float32))[:, None]
            logits = jnp.zeros((*part.shape[:2], states.shape[1]), jnp.float32)
        else:
            of_history = _logits_of_rows(history.rows(), bilinear, candidates, attention)
            of_history = jnp.where(history.mask[:, None], of_history, -jnp.inf)
            total = jax.nn.logsumexp(of_history.astype(jnp.float32), -1)
            logits = _logits_of_rows(states, bilinear, candidates, attention).astype(jnp.float32)
        every = [part]
        for k, row in enumerate(jnp.moveaxis(states @ block, 1, 0)):
            total = jnp.logaddexp(total, logits[..., k])
            weight = jnp.exp(logits[..., k] - total)[..., None].astype(dtype)
            part = part + weight * (row[:, None] - part)
            every.append(part)
        parts.append(every)
    return jnp.stack([_finish(weights, first + s + r) for s, r in zip(*parts, strict=True)])
