"""Where a run's numbers go: metrics.jsonl, TensorBoard events, and the terminal."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from tensorboardX import SummaryWriter

from core.files import write_atomically
from core.terminal_text import visible_line
from core.workdir import Workdir, is_writer

_LOG = logging.getLogger(__name__)


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
        self._events: SummaryWriter | None = None
        if not is_writer():
            return
        self._path = workdir.file("metrics.jsonl")
        kept = [
            line
            for line in read_lines(self._path)
            if line["stage"] != stage or line["step"] <= first_step
        ]
        write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._events = SummaryWriter(
            workdir.file("events", stage, ""), purge_step=first_step + 1, flush_secs=30
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        if self._events is None:
            return
        line = {"stage": self._stage, "step": step, **values}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name.replace("@", "_at_"), value, step)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def read_lines(path: str) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut by a kill is left out."""
    if not os.path.exists(path):
        return []
    lines = []
    with open(path, encoding="utf-8") as file:
        for text in file:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines


class ProgressReport:
    """A progress bar on a terminal, log lines elsewhere: step, loss, examples/s, time left.

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
        """A line of its own, above the bar."""
        if self._bar is not None:
            line = visible_line(f"{self._stage}: {text}")
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            _LOG.info("%s: %s", self._stage, text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
