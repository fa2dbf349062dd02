"""Trains a `Ranker` under supervision: its loss and L2 over batches of a positive and negatives.

For LCR-SER this is 3.3's pre-training, Eq. 12.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from core import schedules, sharded_tables
from core import tables as table_lib
from core.partitioning import Partition, random_bits_impl
from core.settings import Settings, Share, Weight, one_of
from lcrsr import embedding, losses
from lcrsr.ranker import Ranker, numbers_of

State = dict[str, Any]
Evaluate = Callable[[Any, embedding.Tables], dict[str, float]]
SCHEDULES = ("plateau", "cosine")
TABLE_UPDATES = ("touched_rows", "dense")
STARTS = ("random", "spectral")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """Settings of the task, whatever the model.

    Attributes:
      lambda_l2: weight of the squares of dense weights and touched rows, Eq. 12.
      user_dropout: share of users whose row is replaced by the shared row of unseen users.
      table_update: 'touched_rows' (lazy Adam), or 'dense': gradients and moments of
        whole tables, which losses over all items need.
      start: of the tables' rows: 'random', or 'spectral' (`lcrsr.spectral_start`).
      schedule: of the learning rate: 'plateau' follows validation (`core.plateau`), 'cosine' falls
        to a tenth over the stage (`core.schedules.falling`).
    """

    lambda_l2: Weight
    user_dropout: Share
    table_update: Annotated[str, one_of(*TABLE_UPDATES)]
    start: Annotated[str, one_of(*STARTS)] = "random"
    schedule: Annotated[str, one_of(*SCHEDULES)] = "plateau"


_TOUCHED = table_lib.touched_rows("adam")
_DENSE = table_lib.dense("adam")


@jax.jit
def copies(tree: Any) -> Any:
    """Copies every array of a tree."""
    return jax.tree.map(jnp.copy, tree)


def init_table_states(tables: embedding.Tables) -> dict[str, Any]:
    """Returns Adam moments of every table; the same for touched rows and dense."""
    return {name: _TOUCHED.init(table) for name, table in tables.items()}


def update_tables(
    tables: embedding.Tables,
    rows: dict[str, Any],
    gradients: dict[str, jax.Array],
    table_states: dict[str, Any],
    learning_rate: jax.Array,
    step: jax.Array,
    partition: Partition | None = None,
) -> tuple[embedding.Tables, dict[str, Any]]:
    """Updates every table once from the gradients [u, D] of its touched rows."""
    new_tables, new_states = {}, {}
    for name, table in tables.items():
        arguments = (rows[name], gradients[name], table, table_states[name], learning_rate, step)
        if partition is None:
            new_tables[name], new_states[name] = _TOUCHED.update(*arguments)
        else:
            new_tables[name], new_states[name] = sharded_tables.update(
                _TOUCHED, *arguments, partition.mesh
            )
    return new_tables, new_states


def _update_densely(tables, gradients, table_states, learning_rate, step):
    new_tables, new_states = {}, {}
    for name, table in tables.items():
        new_tables[name], new_states[name] = _DENSE.update(
            None, gradients[name], table, table_states[name], learning_rate, step
        )
    return new_tables, new_states


class RankerTask:
    """Trains from scratch, or as the control that goes on as long as RL: a `core.task.TracedTask`.

    Args:
      name: stage name, such as 'train'.
      item_words: word ids int32 [V+1, n] that are part of the items' vectors
        (`embedding.with_item_words`), with `table_update='dense'`; None: items are rows alone.
      start: makes the rows of tables [n, D] that a training from scratch starts with, NaN where
        they stay random; None where all do.
      max_steps: updates of the stage, for a schedule of 'cosine'.
      partition: the mesh to train on; None means one device. Dense table updates leave the cutting
        of their gradients to the compiler, so they belong on meshes that do not cut tables.
    """

    def __init__(
        self,
        *,
        name: str,
        ranker: Ranker,
        config: TrainConfig,
        table_sizes: dict[str, int],
        example_batch: dict[str, np.ndarray],
        batches: Callable[[int], Iterator[dict[str, np.ndarray]]],
        steps_per_epoch: int,
        batch_size: int,
        evaluate: Evaluate,
        selection: str,
        seed: int,
        item_words: np.ndarray | None = None,
        start: Callable[[], dict[str, np.ndarray]] | None = None,
        max_steps: int | None = None,
        partition: Partition | None = None,
    ):
        if item_words is not None and config.table_update != "dense":
            raise ValueError("item_words need table_update='dense'")
        self.name, self.selection = name, selection
        self.steps_per_epoch, self.batch_size = steps_per_epoch, batch_size
        self._ranker, self._config = ranker, config
        self._table_sizes, self._example_batch = table_sizes, example_batch
        self._batches, self._evaluate = batches, evaluate
        self._seed, self.partition = seed, partition
        self._initial: State | None = None  # None: from scratch
        self._start = start
        if config.schedule == "cosine" and max_steps is None:
            raise ValueError("a schedule of 'cosine' needs max_steps")
        self._max_steps = max_steps
        self.numbers: dict[str, Any] = {"seed": seed, **numbers_of(ranker)}
        self._item_words = item_words
        words = () if item_words is None or "word" in ranker.tables else ("word",)
        self._names = (*ranker.tables, *words)
        # Where rows are touched explicitly; the compiler cuts everything else by itself.
        self._explicit = None if config.table_update == "dense" else partition
        self._optimizer = optax.scale_by_adam()
        self.train_step = self._update

    def continued(self, name: str, initial: State) -> RankerTask:
        """Returns a task that trains on from `initial`; both share one compiled step.

        Args:
          name: of its stage.
          initial: a state of this task; the batch after it comes next.
        """
        first, batches = int(initial["step"]), self._batches
        # The copy's `train_step` is this task's own, by which JAX knows the program.
        changed = copy.copy(self)
        changed.name, changed._initial = name, initial
        changed._batches = lambda start: batches(first + start)
        return changed

    @property
    def stream(self) -> tuple[int, int]:
        """Identifies the batches, by their seed and the first one's number."""
        return self._seed, 0 if self._initial is None else int(self._initial["step"])

    def init(self) -> State:
        if self._initial is not None:
            # A copy: the train step is given the state's own buffers to overwrite.
            return copies(self._initial)
        if self.partition is None:
            return self._started(self.random_state(), {})
        # Compiled with its shardings, so that every device draws its own rows alone.
        shardings = self.partition.shardings(jax.eval_shape(self.random_state))
        state = jax.jit(self.random_state, out_shardings=shardings)()
        return self._started(state, shardings["tables"])

    def _started(self, state: State, shardings: dict[str, Any]) -> State:
        """Puts the rows of `start` into the tables of a first update."""
        if self._start is None:
            return state
        tables = dict(state["tables"])
        for name, rows in self._start().items():
            if name in tables:
                tables[name] = embedding.with_rows(tables[name], rows, shardings.get(name))
        return state | {"tables": tables}

    def random_state(self) -> State:
        """Returns the state of a first update: parameters, tables, optimizer moments, step 0.

        Its tables are those that were drawn, whatever a training starts with.
        """
        network_key, table_key = jax.random.split(jax.random.key(self._seed))
        every = embedding.init_tables(
            table_key,
            width=self._ranker.width,
            scale=self._ranker.init_scale,
            user_scale=getattr(self._ranker, "user_scale", None),
            partition=self.partition,
            **self._table_sizes,
        )
        tables = {name: every[name] for name in self._names}
        rows = embedding.zero_fields(tables, self._example_batch, self._ranker.width)
        params = self._ranker.init(network_key, self._example_batch, rows)
        return {
            "step": jnp.int32(0),
            "params": params,
            "optimizer": jax.jit(self._optimizer.init)(params),
            "tables": tables,
            "table_states": jax.jit(init_table_states)(tables),
        }

    def batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        return self._batches(start_step)

    def evaluate(self, state: State) -> dict[str, float]:
        return self._evaluate(state["params"], state["tables"])

    def _update(
        self,
        state: State,
        batch: dict[str, Any],
        learning_rate: jax.Array,
        numbers: Mapping[str, Any] | None = None,
    ) -> tuple[State, dict[str, jax.Array]]:
        if self._config.schedule == "cosine":
            assert self._max_steps is not None
            learning_rate = learning_rate * schedules.falling(state["step"], self._max_steps)
        of_ranker = dict(self.numbers if numbers is None else numbers)
        seed = of_ranker.pop("seed")
        user_key = jax.random.fold_in(jax.random.key(seed), state["step"])
        impl = random_bits_impl(self.partition)
        dropout_key = jax.random.fold_in(jax.random.key(seed, impl=impl), state["step"])
        batch = self._drop_users(user_key, batch)
        tables = state["tables"]
        touched, values = embedding.touched_rows(tables, batch, self._explicit)

        def loss_of(params, values, tables):
            rows = embedding.fields_of(values, touched, batch, self._explicit)
            loss, stats = self._ranker.loss(params, batch, rows, tables, dropout_key, **of_ranker)
            penalty = losses.l2(params, embedding.counted_once(values, touched))
            total = loss + self._config.lambda_l2 * penalty
            return total, {"loss": total, "l2": penalty, **stats}

        def loss_of_tables(params, tables):
            tables = embedding.with_item_words(tables, self._item_words)
            values = {n: table_lib.gather_touched(tables[n], touched[n]) for n in tables}
            return loss_of(params, values, tables)

        rest = (state["table_states"], learning_rate, state["step"])
        if self._config.table_update == "dense":
            (gradient, of_tables), stats = jax.grad(loss_of_tables, argnums=(0, 1), has_aux=True)(
                state["params"], tables
            )
            new_tables, table_states = _update_densely(tables, of_tables, *rest)
        else:
            (gradient, of_rows), stats = jax.grad(loss_of, argnums=(0, 1), has_aux=True)(
                state["params"], values, tables
            )
            new_tables, table_states = update_tables(
                tables, touched, of_rows, *rest, self._explicit
            )
        updates, optimizer = self._optimizer.update(gradient, state["optimizer"])
        params = optax.apply_updates(state["params"], optax.tree.scale(-learning_rate, updates))
        return {
            "step": state["step"] + 1,
            "params": params,
            "optimizer": optimizer,
            "tables": new_tables,
            "table_states": table_states,
        }, stats

    def _drop_users(self, key, batch):
        if "user" not in self._ranker.tables:
            return batch
        unseen_user = self._table_sizes["num_users"] + 1
        dropped = jax.random.bernoulli(key, self._config.user_dropout, batch["user"].shape)
        return batch | {"user": jnp.where(dropped, unseen_user, batch["user"])}
