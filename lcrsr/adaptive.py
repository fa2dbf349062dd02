"""Chooses how many reasoning steps a user gets, before the first one (LCR-SER, open question 1).

A linear head reads a user's encoded histories and predicts the ranking loss under every number of
steps; a user gets the number whose predicted loss and price together are least. One price of a step
for everybody is the only setting, and validation users decide on it. Because the number is known
beforehand, users can be sorted by it: a block of users then takes as many steps as its slowest user
needs, and the steps that others would have taken are saved, not masked.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from core.metrics import half_interval
from lcrsr.embedding import Tables, look_up
from lcrsr.model import LCRSER, Batch, Histories

_PENALTIES = 10.0 ** np.arange(0, 7)
_FOLDS = 5
_ABOVE_0 = np.geomspace(1e-5, 1.0, 51)
# Below 0 steps are rewarded: predictions are too rough to leave out what only seems useless.
_PRICES = np.concatenate([-_ABOVE_0[::-1], [0.0], _ABOVE_0])


def features(histories: Histories) -> jax.Array:
    """Returns the head's inputs float32 [B, 2 D + 2]: h^(0) of both sides, and log(1 + length)."""
    sides = (histories.rec, histories.search)
    lengths = [jnp.log1p(side.mask.sum(-1, keepdims=True)) for side in sides]
    return jnp.concatenate([side.start for side in sides] + lengths, -1).astype(jnp.float32)


def ranking_losses(logits: jax.Array) -> jax.Array:
    """Returns -log softmax of the target, candidate 0: [...] of logits [..., N], in nats."""
    return -jax.nn.log_softmax(logits.astype(jnp.float32))[..., 0]


@flax.struct.dataclass
class Head:
    """Predicts losses [B, K+1] = features [B, F] @ weights [F, K+1] + bias [K+1]."""

    weights: jax.Array
    bias: jax.Array

    def steps(self, x: jax.Array, price: jax.Array) -> jax.Array:
        """Returns int32 [B] of features [B, F]: argmin over k of the predicted loss + price * k."""
        k = jnp.arange(len(self.bias))
        return jnp.argmin(x @ self.weights + self.bias + price * k, -1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Holds what validation users decided.

    Attributes:
      best_fixed: the K whose mean metric is best, the smallest of equals.
      price: of a step, in nats; below 0 for a reward.
      mean_steps: that the users would take at this price.
      metric: their mean metric with it, each predicted by a head that has not seen them.
    """

    best_fixed: int
    price: float
    mean_steps: float
    metric: float


def calibrate(
    x: np.ndarray, losses: np.ndarray, values: np.ndarray, users: np.ndarray, tolerance: float
) -> tuple[Head, Calibration]:
    """Fits the head by ridge regression and finds the highest price that costs little.

    What a price costs is the lower end of the 95% interval of the users' mean difference from the
    best fixed K, so that few users allow less than many. Nobody gets more steps than that K, and
    where every price costs more than `tolerance` everybody gets as many.

    Args:
      x: features float32 [E, F] of validation examples.
      losses: [E, K+1] under every number of steps.
      values: the metric [E, K+1].
      users: of the examples, [E]; all examples of a user are in one fold.
      tolerance: how far below the best fixed K that lower end may lie.

    Raises:
      ValueError: fewer users than folds.
    """
    every, place = np.unique(users, return_inverse=True)
    if len(every) < _FOLDS:
        raise ValueError(f"expected at least {_FOLDS} validation users, found {len(every)}")
    # Losses against their mean over K: how hard a user is does not matter, only which K is best.
    relative = losses - losses.mean(1, keepdims=True)
    model = make_pipeline(StandardScaler(), RidgeCV(_PENALTIES))
    held = (
        np.isin(place, chosen)
        for _, chosen in KFold(_FOLDS, shuffle=True, random_state=0).split(every)
    )
    folds = [(np.flatnonzero(~rows), np.flatnonzero(rows)) for rows in held]
    best = int(values.mean(0).argmax())
    unseen = cross_val_predict(model, x, relative, cv=folds)[:, : best + 1]
    chosen = None
    for price in _PRICES:
        k = (unseen + price * np.arange(best + 1)).argmin(1)
        reached = values[np.arange(len(k)), k]
        gains = np.bincount(place, reached - values[:, best]) / np.bincount(place)
        if gains.mean() - half_interval(gains) >= -tolerance:
            chosen = Calibration(best, float(price), float(k.mean()), float(reached.mean()))
    if chosen is None:
        fixed = np.where(np.arange(losses.shape[1]) == best, 0.0, np.inf)
        nothing = jnp.zeros((x.shape[1], len(fixed)))
        return Head(nothing, jnp.float32(fixed)), Calibration(
            best, 0.0, best, float(values[:, best].mean())
        )
    model.fit(x, relative)
    scaler, ridge = model[0], model[1]
    weights = ridge.coef_.T / scaler.scale_[:, None]
    bias = ridge.intercept_ - scaler.mean_ @ weights
    bias[best + 1 :] = np.inf
    return Head(jnp.float32(weights), jnp.float32(bias)), chosen


class AdaptiveScorer:
    """Scores candidates [B, N] with a number of steps a user.

    Args:
      model: trained with at least one step; K is its `max_steps`.
      block: users that take their steps together; divides B.
    """

    def __init__(self, model: LCRSER, block: int):
        self.model, self.block = model, block
        self.every_k = jax.jit(self._every_k)
        self.adaptive = jax.jit(self._adaptive)
        self.fixed = jax.jit(self._fixed, static_argnames="steps")

    def _apply(self, params: Any, method: Any, *arguments: Any, **named: Any) -> Any:
        return self.model.apply({"params": params}, *arguments, method=method, **named)

    def _encode(self, params: Any, batch: Batch, tables: Tables) -> tuple[Histories, Any]:
        rows = look_up(tables, batch)
        return self._apply(params, LCRSER.encode, batch, rows, deterministic=True), rows

    def _every_k(self, params: Any, tables: Tables, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Features [B, F], and logits [K+1, B, N] of every number of steps from one pass."""
        histories, rows = self._encode(params, batch, tables)
        steps = self.model.config.max_steps
        states = self._reason(params, histories, steps)
        logits = self._apply(
            params, LCRSER.score_every_k, histories, states, rows.get("user"), rows["candidates"]
        )
        return features(histories), logits

    def _reason(self, params: Any, histories: Histories, steps: int) -> Any:
        starts = (histories.rec.start, histories.search.start)
        return self._apply(
            params, LCRSER.reason, histories, *starts, cross=True, deterministic=True, steps=steps
        )

    def _scores(self, params: Any, histories: Histories, rows: Any, own: Any, steps: int) -> Any:
        states = self._reason(params, histories, steps)
        arguments = (histories, states, own[:, None], rows.get("user"), rows["candidates"])
        return self._apply(params, LCRSER.score, *arguments)

    def _fixed(self, params: Any, tables: Tables, batch: Batch, *, steps: int) -> jax.Array:
        """Logits [B, N] where everybody takes `steps`."""
        histories, rows = self._encode(params, batch, tables)
        own = jnp.full(len(rows["candidates"]), steps)
        return self._scores(params, histories, rows, own, steps)

    def _adaptive(
        self, params: Any, tables: Tables, batch: Batch, head: Head, price: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Logits [B, N] and the steps int32 [B] of each user."""
        histories, rows = self._encode(params, batch, tables)
        own = head.steps(features(histories), price)
        order = jnp.argsort(own)
        every = (histories, {name: rows.get(name) for name in ("user", "candidates")}, own)
        blocks = jax.tree.map(
            lambda leaf: leaf[order].reshape(-1, self.block, *leaf.shape[1:]), every
        )
        branches = [
            functools.partial(self._scores, params, steps=steps)
            for steps in range(self.model.config.max_steps + 1)
        ]

        def of_block(block):
            return jax.lax.switch(block[2][-1], branches, *block)

        logits = jax.lax.map(of_block, blocks)
        return logits.reshape(len(own), -1)[jnp.argsort(order)], own
