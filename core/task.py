"""Defines what the training loop asks of a system: the `Task` protocol."""

from __future__ import annotations

from collections.abc import Iterator
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
