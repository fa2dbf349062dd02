"""Writes a run's numbers to metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import itertools
import json
import logging
import os
import time
from collections.abc import Iterable
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from core.errors import UserError
from core.files import append, write_atomically, writing
from core.workdir import Workdir, is_writer

METRICS_FILE = "metrics.jsonl"
_LOG = logging.getLogger(__name__)
_FLUSH_S = 30.0
_LONGEST_LINE = 2**20  # bytes; a line holds some numbers


class MetricWriter:
    """Appends scalars of one stage to metrics.jsonl and to TensorBoard events.

    Of several processes the first writes.

    Args:
      workdir: the run's folder.
      stage: the stage's name, on every line.
      first_step: the step the stage continues from; lines that a killed run wrote beyond it are
        dropped, since the steps run again.
    """

    def __init__(self, workdir: Workdir, stage: str, first_step: int):
        self._stage = stage
        self._events: _Events | None = None
        if not is_writer():
            return
        self._path = workdir.file(METRICS_FILE)
        lines, damaged = _read(self._path)
        if damaged:
            _LOG.warning("%s; the file is kept as %s", damaged, _put_aside(self._path))
        earlier = [line for line in lines if line["stage"] != stage or line["step"] <= first_step]
        write_lines(workdir, earlier)
        self._events = _Events(workdir.file("events", stage, ""), first_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one line.

        Raises:
          core.files.WriteError: the disk is full, or the file cannot be written.
        """
        if self._events is None:
            return
        line = {"stage": self._stage, "step": step, **values}
        append(self._path, json.dumps(line) + "\n")
        self._events.write(step, values)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


class _Events:
    """Writes TensorBoard's events of one stage.

    Written in this thread: a `SummaryWriter` writes in another, which a full disk ends, and then
    waits for it for ever.
    """

    def __init__(self, folder: str, first_step: int):
        self._folder, self._flushed = folder, time.monotonic()
        with writing(folder):
            prefix = os.path.join(folder, "events")
            self._writer = EventsWriter(prefix, f".{os.getpid()}")
            # Drops what a killed run has shown beyond the step.
            start = SessionLog(status=SessionLog.START)
            self._add(Event(step=first_step + 1, session_log=start))

    def write(self, step: int, values: dict[str, float]) -> None:
        with writing(self._folder):
            for name, value in values.items():
                self._add(Event(step=step, summary=scalar(name.replace("@", "_at_"), value)))
            if time.monotonic() - self._flushed > _FLUSH_S:
                self._writer.flush()
                self._flushed = time.monotonic()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)

    def close(self) -> None:
        with writing(self._folder):
            self._writer.close()


def read_lines(path: str) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl, each with its 'stage' and 'step'; none without a file.

    A last line cut by a kill is left out. Other lines that cannot be read are left out too, and a
    warning says so.

    Raises:
      UserError: the file cannot be read.
    """
    lines, damaged = _read(path)
    if damaged:
        _LOG.warning("%s", damaged)
    return lines


def write_lines(workdir: Workdir, lines: Iterable[dict[str, Any]]) -> None:
    """Puts these lines in the place of a workdir's metrics.jsonl."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomically(workdir.file(METRICS_FILE), text)


def _read(path: str) -> tuple[list[dict[str, Any]], str]:
    """Returns the lines that can be read, and what is wrong with others, '' for nothing.

    Only a last line may be cut: a run that is killed leaves such a one.
    """
    lines, bad, number = [], [], 0
    try:
        with open(path, "rb") as file:
            while text := file.readline(_LONGEST_LINE):
                number += 1
                line = _parse(text)
                if line is not None:
                    lines.append(line)
                elif text.endswith(b"\n") or len(text) == _LONGEST_LINE:
                    bad.append(number)
                while len(text) == _LONGEST_LINE and not text.endswith(b"\n"):
                    text = file.readline(_LONGEST_LINE)
    except FileNotFoundError:
        return [], ""
    except OSError as error:
        raise UserError(
            f"expected the metrics of a run at {path}, found {error.strerror}; mend it, or train "
            "again in another --workdir"
        ) from error
    if not bad:
        return lines, ""
    return lines, (
        f"{path}: {len(bad)} of {number} lines cannot be read, the first of them line {bad[0]}; "
        "the others go on"
    )


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict):
        return None
    of_stage = isinstance(line.get("stage"), str) and type(line.get("step")) is int
    numbers = all(isinstance(v, int | float) for k, v in line.items() if k != "stage")
    return line if of_stage and numbers else None


def _put_aside(path: str) -> str:
    """Renames a file to a name that is free, which it returns."""
    for number in itertools.count(1):
        aside = f"{path}.damaged-{number}"
        if not os.path.lexists(aside):
            os.rename(path, aside)
            return aside
    raise AssertionError("there is always a free number")
