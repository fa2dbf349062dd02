"""Defines what the training loop asks of a system: the `Task` protocol."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Protocol

import jax

from core.partitioning import Partition

State = Any  # a pytree of arrays: parameters, optimizer state, tables, step
Batch = dict[str, Any]


class Task(Protocol):
    """Describes one stage of one system's training.

    Attributes:
      name: the stage's name; its checkpoints and metrics carry it.
      selection: the validation metric, with its protocol, that early stopping maximises.
      steps_per_epoch: updates that see every training example once.
      batch_size: examples per update, over all hosts.
      partition: the mesh and the rules by which the state lies on it, or None for one device. The
        loop cuts batches over it; `init` and `train_step` keep to its shardings.
    """

    name: str
    selection: str
    steps_per_epoch: int
    batch_size: int
    partition: Partition | None

    def init(self) -> State:
        """Returns the state before the first update, with an int32 scalar `step`."""
        ...

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Yields this process's parts of training batches from `start_step` on, without end."""
        ...

    def train_step(
        self, state: State, batch: Batch, learning_rate: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        """Makes one update, jit-able; the statistics are scalars and include `loss`."""
        ...

    def evaluate(self, state: State) -> dict[str, float]:
        """Returns validation metrics by full name, the selection metric among them."""
        ...


class TracedTask(Task, Protocol):
    """Takes some of its settings as arguments of an update: one program serves all their values.

    Attributes:
      numbers: the task's own values of these settings, by name.
      stream: identifies the batches: tasks on the same data with equal streams read the same ones.
    """

    @property
    def numbers(self) -> Mapping[str, Any]: ...

    @property
    def stream(self) -> Hashable: ...

    def train_step(
        self,
        state: State,
        batch: Batch,
        learning_rate: jax.Array,
        numbers: Mapping[str, Any] | None = None,
    ) -> tuple[State, dict[str, jax.Array]]:
        """Does `Task.train_step` with other values, traced or not, of everything in `numbers`.

        Args:
          numbers: scalars by name; None means the task's own.
        """
        ...
