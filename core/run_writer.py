"""Defines what takes a run's numbers beside metrics.jsonl, such as TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class RunWriter(Protocol):
    """Takes the numbers of one run, stage by stage."""

    def start_stage(self, stage: str, first_step: int) -> None:
        """Begins a stage, or continues it: what was written of later steps is void."""
        ...

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Takes the values of one step; they may be NaN or infinite."""
        ...

    def end_stage(self, stage: str) -> None: ...

    def write_results(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes the rows of results.json, once all stages are tested."""
        ...

    def close(self, status: str) -> None:
        """Ends the writing.

        Args:
          status: of the run: 'finished', 'stopped' (the same command continues it) or 'failed'.
        """
        ...
