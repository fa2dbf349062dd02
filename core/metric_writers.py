"""Writes a run's numbers to metrics.jsonl, TensorBoard events and the terminal."""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from core.errors import UserError
from core.files import append, write_atomically, writing
from core.terminal_text import visible_line
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


class ProgressReport:
    """Shows step, loss, examples/s and time left: as a bar on a terminal, as log lines elsewhere.

    The rate is that of this process's own steps after the first that is shown, so that neither
    compiling nor what an earlier process did is taken for it; until the next there is none.
    """

    def __init__(self, stage: str, first_step: int, last_step: int, batch_size: int):
        self._stage, self._last, self._batch_size = stage, last_step, batch_size
        # When the first shown step was reached, and which that was.
        self._since: tuple[float, int] | None = None
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} {task.fields[text]}", markup=False),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._row = self._bar.add_task(stage, total=last_step, completed=first_step, text="")

    def step(self, step: int, values: dict[str, float]) -> None:
        """Shows the state after `step`; `values` are scalars such as the loss."""
        text = " ".join(f"{name} {value:.4f}" for name, value in values.items())
        now = time.monotonic()
        if self._since is None:
            self._since = (now, step)
        elif step > self._since[1]:
            rate = (step - self._since[1]) / max(now - self._since[0], 1e-9)
            left = (self._last - step) / rate
            text += f" {rate * self._batch_size:,.0f} examples/s, {left:.0f} s left at most"
        if self._bar is not None:
            self._bar.update(self._row, completed=step, text=text)
        else:
            _LOG.info("%s step %d/%d %s", self._stage, step, self._last, text)

    def say(self, text: str) -> None:
        """Prints a line of its own above the bar, or logs it where there is no bar."""
        if self._bar is not None:
            line = visible_line(f"{self._stage}: {text}")
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            _LOG.info("%s: %s", self._stage, text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
