"""Tunes a pre-trained policy with GRPO (3.4), LCR-SER above all, as a `core.task.Task`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from core.metrics import MetricName
from core.partitioning import Partition
from core.settings import Count, CountOrNone, Positive, Settings, Weight, at_least, one_of
from lcrsr import embedding, rollout
from lcrsr.model import LCRSER
from lcrsr.ranker_task import Evaluate, State, init_table_states, update_tables


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinforceConfig(Settings):
    """Holds the settings of Eq. 13-17.

    Attributes:
      trajectories: N, the first free of noise.
      gamma: noise relative to the RMS of h^(0).
      reward: a metric's name, over the target and its sampled negatives.
      policy: 'softmax' over the candidates, or 'sigmoid' of the target's logit.
      lambda_kl: weight of the penalty towards the pre-trained policy.
      updates_per_rollout: updates between refreshes of pi_old; 1 makes pi_old the current policy.
      clip_eps: clipping of the ratio; 0 clips nothing, as printed.
      trainable: 'dense' (the network, tables fixed), 'all' (tables too, as printed), 'reasoning'.
      active_steps: K in use; with 0 there is nothing to explore, and updates change nothing.
    """

    trajectories: Annotated[int, at_least(2)]
    gamma: Positive
    reward: MetricName
    policy: Annotated[str, one_of(*rollout.POLICIES)]
    lambda_kl: Weight
    updates_per_rollout: Count
    clip_eps: Weight
    trainable: Annotated[str, one_of(*rollout.TRAINABLE)]
    active_steps: CountOrNone


class PolicyTask:
    """Tunes `initial`, the best state of pre-training, by GRPO, as a `core.task.TracedTask`.

    Args:
      trainable: as `ReinforceConfig.trainable`.
      updates_per_rollout: as `ReinforceConfig.updates_per_rollout`.
      numbers: what of the settings is arithmetic alone.
    """

    name = "rl"

    def __init__(
        self,
        *,
        initial: State,
        trainable: str,
        updates_per_rollout: int,
        numbers: Mapping[str, Any],
        batches: Callable[[int], Iterator[dict[str, np.ndarray]]],
        steps_per_epoch: int,
        batch_size: int,
        evaluate: Evaluate,
        selection: str,
        seed: int,
        partition: Partition | None = None,
    ):
        self.partition = partition
        self.selection = selection
        self.steps_per_epoch, self.batch_size = steps_per_epoch, batch_size
        self._initial = initial
        self._trainable, self._updates_per_rollout = trainable, updates_per_rollout
        self._batches, self._evaluate = batches, evaluate
        self._optimizer = optax.scale_by_adam()
        self.numbers: dict[str, Any] = {"seed": seed, **numbers}

    def loss(
        self,
        state: State,
        params: Any,
        rows: dict[str, jax.Array],
        batch: dict[str, Any],
        key: jax.Array,
        numbers: Mapping[str, Any],
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns -J of Eq. 15 for parameters and rows of the batch, and what to log."""
        raise NotImplementedError

    def explores(self, numbers: Mapping[str, Any]) -> jax.Array:
        """Tells whether trajectories differ at all, bool []: where they do not, nothing changes."""
        del numbers
        return jnp.bool_(True)

    @property
    def stream(self) -> int:
        """Identifies the batches, by their seed."""
        return self.numbers["seed"]

    def init(self) -> State:
        # Compiled whole: copies one by one are a program each.
        shardings = None
        if self.partition is not None:
            shardings = self.partition.shardings(jax.eval_shape(self.state_from, self._initial))
        return jax.jit(self.state_from, out_shardings=shardings)(self._initial)

    def state_from(self, initial: State) -> State:
        """Returns the state before the first update, from a pre-training state."""
        params, tables = initial["params"], initial["tables"]
        # Copies: the state is donated to the train step, and the pre-trained one is still needed.
        state = {
            "step": jnp.int32(0),
            "params": jax.tree.map(jnp.copy, params),
            "optimizer": self._optimizer.init(params),
            "tables": jax.tree.map(jnp.copy, tables),
            "reference": self._snapshot(params, tables),
        }
        if self._trainable == "all":
            state["table_states"] = init_table_states(tables)
        if self._updates_per_rollout > 1:
            state["old"] = self._snapshot(params, tables)
        return state

    def _snapshot(self, params: Any, tables: embedding.Tables) -> dict[str, Any]:
        snapshot = {"params": jax.tree.map(jnp.copy, params)}
        if self._trainable == "all":
            snapshot["tables"] = jax.tree.map(jnp.copy, tables)
        return snapshot

    def batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        return self._batches(start_step)

    def evaluate(self, state: State) -> dict[str, float]:
        return self._evaluate(state["params"], state["tables"])

    def train_step(
        self,
        state: State,
        batch: dict[str, Any],
        learning_rate: jax.Array,
        numbers: Mapping[str, Any] | None = None,
    ) -> tuple[State, dict[str, jax.Array]]:
        numbers = self.numbers if numbers is None else numbers
        key = jax.random.fold_in(jax.random.key(numbers["seed"]), state["step"])
        if self._updates_per_rollout > 1:
            state = self._refresh_old(state)
        touched, values = embedding.touched_rows(state["tables"], batch, self.partition)

        def loss_of(params, values):
            rows = embedding.fields_of(values, touched, batch, self.partition)
            return self.loss(state, params, rows, batch, key, numbers)

        (gradient, row_gradients), stats = jax.grad(loss_of, argnums=(0, 1), has_aux=True)(
            state["params"], values
        )
        # Where all trajectories are one, Eq. 15 has no gradient. What the penalty's has is the
        # rounding between two equal policies, which Adam scales up to whole updates.
        explores = self.explores(numbers)
        gradient, row_gradients = jax.tree.map(
            lambda g: jnp.where(explores, g, jnp.zeros_like(g)), (gradient, row_gradients)
        )
        mask = rollout.trainable_mask(gradient, self._trainable)
        gradient = jax.tree.map(lambda g, keep: g if keep else jnp.zeros_like(g), gradient, mask)
        updates, optimizer = self._optimizer.update(gradient, state["optimizer"])
        new_state = state | {
            "step": state["step"] + 1,
            "params": optax.apply_updates(
                state["params"], optax.tree.scale(-learning_rate, updates)
            ),
            "optimizer": optimizer,
        }
        if self._trainable == "all":
            new_state["tables"], new_state["table_states"] = update_tables(
                state["tables"],
                touched,
                row_gradients,
                state["table_states"],
                learning_rate,
                state["step"],
                self.partition,
            )
        return new_state, stats

    def _refresh_old(self, state: State) -> State:
        due = state["step"] % self._updates_per_rollout == 0
        current = {name: state[name] for name in state["old"]}
        old = jax.tree.map(lambda new, held: jnp.where(due, new, held), current, state["old"])
        return state | {"old": old}


class ReinforceTask(PolicyTask):
    """Tunes a pre-trained LCR-SER."""

    def __init__(self, *, model: LCRSER, config: ReinforceConfig, **of_policy: Any):
        super().__init__(
            trainable=config.trainable,
            updates_per_rollout=config.updates_per_rollout,
            numbers={
                "active_steps": config.active_steps,
                "gamma": config.gamma,
                "lambda_kl": config.lambda_kl,
            },
            **of_policy,
        )
        self._model, self._config = model, config

    def explores(self, numbers: Mapping[str, Any]) -> jax.Array:
        """Tells whether it reasons: without a step no score depends on the noise."""
        return jnp.int32(numbers["active_steps"]) > 0

    def loss(
        self,
        state: State,
        params: Any,
        rows: dict[str, jax.Array],
        batch: dict[str, Any],
        key: jax.Array,
        numbers: Mapping[str, Any],
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        config = self._config
        return rollout.grpo_loss(
            self._model,
            rollout.Policy(params, state["tables"]),
            rows,
            self._policy(state, "old") if "old" in state else None,
            self._policy(state, "reference"),
            batch,
            key,
            active_steps=jnp.int32(numbers["active_steps"]),
            num_trajectories=config.trajectories,
            gamma=numbers["gamma"],
            reward=config.reward,
            policy=config.policy,
            kl_weight=numbers["lambda_kl"],
            clip_eps=config.clip_eps or None,
            partition=self.partition,
        )

    def _policy(self, state: State, which: str) -> rollout.Policy:
        held = state[which]
        return rollout.Policy(held["params"], held.get("tables", state["tables"]))
