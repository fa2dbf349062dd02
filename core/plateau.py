"""Decides early stopping and learning-rate reduction on plateau, from plain numbers on the host."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass
class Plateau:
    """Follows a metric to be maximised; an improvement is strictly greater than the best so far.

    Attributes:
      learning_rate: the rate in force.
      min_lr: floor of the reductions.
      factor: what a reduction multiplies the rate by.
      patience: evaluations without improvement before each reduction.
      stop_patience: evaluations without improvement before stopping.
      best: best value so far, None before the first.
      since_best: evaluations since the best.
      since_change: evaluations without improvement since the best or the last reduction.
    """

    learning_rate: float
    min_lr: float
    factor: float
    patience: int
    stop_patience: int
    best: float | None = None
    since_best: int = 0
    since_change: int = 0

    def update(self, value: float) -> bool:
        """Takes the next evaluation; True if it is the best so far."""
        if self.best is None or value > self.best:
            self.best, self.since_best, self.since_change = value, 0, 0
            return True
        self.since_best += 1
        self.since_change += 1
        if self.since_change >= self.patience:
            self.learning_rate = max(self.min_lr, self.learning_rate * self.factor)
            self.since_change = 0
        return False

    @property
    def should_stop(self) -> bool:
        return self.since_best >= self.stop_patience

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plateau:
        return cls(**values)
