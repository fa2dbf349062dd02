"""The protocol between programs and the systems that they run."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol

from ml_collections import config_dict

from core import metrics
from core.loop import LoopConfig, StageResult
from core.workdir import Workdir

# Yields stages to train and is sent their results.
Plan = Generator[tuple[Any, LoopConfig], StageResult, None]


class Runnable(Protocol):
    """What the programs ask of an experiment, trained or fitted.

    Attributes:
      stages: names of what `run` leaves behind, the one to use first.
      evaluator: ranks with (params, tables).
    """

    config: config_dict.ConfigDict
    data: Any
    stages: tuple[str, ...]
    evaluator: Any

    def check_data(self) -> None:
        """Raises UserError where the data does not have what a run reads; nothing is written."""
        ...

    def run(self, workdir: Workdir) -> None: ...

    def evaluate(self, params: Any, tables: Any, split: str, protocol: str) -> metrics.Sums: ...

    def columns(self, task: str, protocol: str) -> tuple[str, ...]: ...

    def details(self, split: str, protocol: str) -> dict[str, Any]: ...
