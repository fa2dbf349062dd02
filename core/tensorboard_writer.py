"""Writes a run's scalars as TensorBoard events, one folder a stage."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from core.files import writing

_FLUSH_S = 30.0


class TensorBoardWriter:
    """Writes TensorBoard's events of a run's stages; a `core.run_writer.RunWriter`.

    Written in this thread: a `SummaryWriter` writes in another, which a full disk ends, and then
    waits for it for ever.

    Args:
      folder: the stages' folders are made in it.

    Raises (from every method):
      core.files.WriteError: the disk is full, or the files cannot be written.
    """

    def __init__(self, folder: str):
        self._folder = folder
        self._stages: dict[str, EventsWriter] = {}
        self._flushed = time.monotonic()

    def start_stage(self, stage: str, first_step: int) -> None:
        folder = os.path.join(self._folder, stage)
        with writing(folder):
            os.makedirs(folder, exist_ok=True)
            writer = EventsWriter(os.path.join(folder, "events"), f".{os.getpid()}")
            self._stages[stage] = writer
            # Drops what a killed run has shown beyond the step.
            start = SessionLog(status=SessionLog.START)
            _add(writer, Event(step=first_step + 1, session_log=start))

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        writer = self._stages[stage]
        with writing(os.path.join(self._folder, stage)):
            for name, value in values.items():
                _add(writer, Event(step=step, summary=scalar(name.replace("@", "_at_"), value)))
            if time.monotonic() - self._flushed > _FLUSH_S:
                writer.flush()
                self._flushed = time.monotonic()

    def end_stage(self, stage: str) -> None:
        with writing(os.path.join(self._folder, stage)):
            self._stages.pop(stage).close()

    def write_results(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Leaves them to results.json: they belong to no step."""

    def close(self, status: str) -> None:
        for stage in list(self._stages):
            self.end_stage(stage)


def _add(writer: EventsWriter, event: Event) -> None:
    event.wall_time = time.time()
    writer.write_event(event)
