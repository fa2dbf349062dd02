"""Shows on standard error how far a program is."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from core.terminal_text import visible_line

_LOG = logging.getLogger(__name__)


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
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
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
