"""Shows on standard error how far a program is."""

from __future__ import annotations

import logging
import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from core.terminal_text import visible_line

_LOG = logging.getLogger(__name__)


def _rows(numbers: ProgressColumn) -> Progress:
    """Makes the display of rows with a name, a bar, `numbers` and the time since they began."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        numbers,
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


class Bars:
    """Shows a bar for each thing done on a terminal; elsewhere logs a line when it begins.

    Args:
      terminal: whether standard error is one.
    """

    def __init__(self, terminal: bool):
        self._terminal = terminal
        self._progress: Progress | None = None
        self._row, self._what = TaskID(0), ""

    def __enter__(self) -> Bars:
        if self._terminal:
            self._progress = _rows(TaskProgressColumn())
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def report(self, what: str, share: float) -> None:
        """Shows that `share` of `what` is done."""
        if self._progress is None:
            if what != self._what:
                _LOG.info("%s", what)
        else:
            if what != self._what:
                if self._what:
                    self._progress.update(self._row, completed=1.0)
                self._row = self._progress.add_task(visible_line(what), total=1.0)
            self._progress.update(self._row, completed=share)
        self._what = what


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
            numbers = "{task.completed}/{task.total} {task.fields[text]}"
            self._bar = _rows(TextColumn(numbers, markup=False))
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
