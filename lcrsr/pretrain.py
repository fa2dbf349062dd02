"""Supervised pre-training (3.3): Eq. 12 over batches of one positive and sampled negatives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from core import tables as table_lib
from lcrsr import embedding, losses
from lcrsr.model import LCRSER

State = dict[str, Any]
Evaluate = Callable[[Any, embedding.Tables], dict[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The settings of Eq. 9, 11 and 12.

    Attributes:
      lambda_tcl: weight of the contrastive loss.
      lambda_l2: weight of the squares of dense weights and touched rows.
      margin: m of Eq. 9, in the unit of `distance`.
      distance: 'cosine' or 'euclidean'.
      stop_gradient: which side of the hinge's distances gets no gradient: 'none' (as printed),
        'h_plain' or 'both' (READINGS).
      user_dropout: share of users whose row is replaced by the shared row of unseen users.
      active_steps: K in use while training.
      init_scale: standard deviation of the tables' first rows.
    """

    lambda_tcl: float
    lambda_l2: float
    margin: float
    distance: str
    stop_gradient: str
    user_dropout: float
    active_steps: int
    init_scale: float


def table_optimizers() -> dict[str, table_lib.TableOptimizer]:
    return {name: table_lib.touched_rows("adam") for name in embedding.TABLE_FIELDS}


def update_tables(
    tables: embedding.Tables,
    table_states: dict[str, Any],
    ids: dict[str, jax.Array],
    row_gradients: dict[str, jax.Array],
    learning_rate: jax.Array,
    step: jax.Array,
) -> tuple[embedding.Tables, dict[str, Any]]:
    """One touched-row update of every table from the gradients [n, D] of its gathered rows."""
    new_tables, new_states = {}, {}
    for name, optimizer in table_optimizers().items():
        groups = table_lib.group_ids(ids[name], tables[name].shape[0])
        summed = table_lib.sum_duplicates(groups, row_gradients[name])
        new_tables[name], new_states[name] = optimizer.update(
            groups, summed, tables[name], table_states[name], learning_rate, step
        )
    return new_tables, new_states


class PretrainTask:
    """A `core.task.Task`: pre-training, or the control that continues it as long as RL runs.

    Args:
      name: stage name, 'pretrain' or 'control'.
      initial: the state to start from; None means random initialisation.
    """

    def __init__(
        self,
        *,
        name: str,
        model: LCRSER,
        config: PretrainConfig,
        table_sizes: dict[str, int],
        example_batch: dict[str, np.ndarray],
        batches: Callable[[int], Iterator[dict[str, np.ndarray]]],
        steps_per_epoch: int,
        batch_size: int,
        evaluate: Evaluate,
        selection: str,
        seed: int,
        initial: State | None = None,
    ):
        self.name, self.selection = name, selection
        self.steps_per_epoch, self.batch_size = steps_per_epoch, batch_size
        self._model, self._config = model, config
        self._table_sizes, self._example_batch = table_sizes, example_batch
        self._batches, self._evaluate = batches, evaluate
        self._seed, self._initial = seed, initial
        self._optimizer = optax.scale_by_adam()

    def init(self) -> State:
        if self._initial is not None:
            # A copy: the train step is given the state's own buffers to overwrite.
            return jax.tree.map(jnp.copy, self._initial)
        return self.random_state()

    def random_state(self) -> State:
        """The state of a first update: parameters, tables, optimizer moments, step 0."""
        network_key, table_key = jax.random.split(jax.random.key(self._seed))
        width = self._model.config.width
        tables = embedding.init_tables(
            table_key, width=width, scale=self._config.init_scale, **self._table_sizes
        )
        rows = embedding.look_up(tables, self._example_batch)
        variables = self._model.init(
            {"params": network_key}, self._example_batch, rows, jnp.int32(0), deterministic=True
        )
        params = variables["params"]
        return {
            "step": jnp.int32(0),
            "params": params,
            "optimizer": self._optimizer.init(params),
            "tables": tables,
            "table_states": {n: o.init(tables[n]) for n, o in table_optimizers().items()},
        }

    def batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        return self._batches(start_step)

    def evaluate(self, state: State) -> dict[str, float]:
        return self._evaluate(state["params"], state["tables"])

    def train_step(
        self, state: State, batch: dict[str, Any], learning_rate: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(self._seed), state["step"])
        user_key, dropout_key = jax.random.split(key)
        batch = self._drop_users(user_key, batch, state["tables"]["user"].shape[0] - 1)
        ids = embedding.flat_ids(batch)
        flat = embedding.gather_flat(state["tables"], ids)

        def loss_of(params, flat):
            return self._loss(params, flat, ids, batch, state, dropout_key)

        gradients, stats = jax.grad(loss_of, argnums=(0, 1), has_aux=True)(state["params"], flat)
        updates, optimizer = self._optimizer.update(gradients[0], state["optimizer"])
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state["params"], updates)
        tables, table_states = update_tables(
            state["tables"], state["table_states"], ids, gradients[1], learning_rate, state["step"]
        )
        return {
            "step": state["step"] + 1,
            "params": params,
            "optimizer": optimizer,
            "tables": tables,
            "table_states": table_states,
        }, stats

    def _drop_users(self, key, batch, unseen_user):
        dropped = jax.random.bernoulli(key, self._config.user_dropout, batch["user"].shape)
        return batch | {"user": jnp.where(dropped, unseen_user, batch["user"])}

    def _loss(self, params, flat, ids, batch, state, dropout_key):
        config = self._config
        rows = embedding.rows_of(flat, batch)
        active = jnp.int32(config.active_steps)
        outputs: Any = self._model.apply(
            {"params": params},
            batch,
            rows,
            active,
            deterministic=False,
            rngs={"dropout": dropout_key},
        )
        recommendation = losses.bce(outputs.logits, batch["labels"], batch["mask"])
        contrastive, distances = losses.contrastive_from_outputs(
            outputs,
            rows["candidates"][:, 0],
            active,
            batch["mask"],
            margin=config.margin,
            distance=config.distance,
            stop_gradient=config.stop_gradient,
        )
        groups = {
            name: table_lib.group_ids(ids[name], state["tables"][name].shape[0])
            for name in embedding.TABLE_FIELDS
        }
        penalty = losses.l2(params, [(flat[n], groups[n].first) for n in groups])
        total = recommendation + config.lambda_tcl * contrastive + config.lambda_l2 * penalty
        return total, {
            "loss": total,
            "bce": recommendation,
            "contrastive": contrastive,
            "l2": penalty,
            **distances,
        }
