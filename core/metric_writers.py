"""Writes a run's numbers to metrics.jsonl and to its further writers."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

from core.errors import UserError
from core.files import append, write_atomically
from core.run_writer import RunWriter
from core.tensorboard_writer import TensorBoardWriter
from core.workdir import Workdir, is_writer

METRICS_FILE = "metrics.jsonl"
_LOG = logging.getLogger(__name__)
_LONGEST_LINE = 2**20  # bytes; a line holds some numbers


class MetricWriter:
    """Appends scalars of one stage to metrics.jsonl and hands them to the run's writers.

    The writers are `workdir.writers`, or TensorBoard alone where nobody has opened others. Of
    several processes the first writes.

    Args:
      workdir: the run's folder.
      stage: the stage's name, on every line.
      first_step: the step the stage continues from; lines that a killed run wrote beyond it are
        dropped, since the steps run again.
    """

    def __init__(self, workdir: Workdir, stage: str, first_step: int):
        self._stage = stage
        self._writers: Sequence[RunWriter] = ()
        if not is_writer():
            return
        self._path = workdir.file(METRICS_FILE)
        lines, damaged = _read(self._path)
        if damaged:
            _LOG.warning("%s; the file is kept as %s", damaged, _put_aside(self._path))
        earlier = [line for line in lines if line["stage"] != stage or line["step"] <= first_step]
        write_lines(workdir, earlier)
        writers = workdir.writers
        self._writers = [TensorBoardWriter(workdir.file("events"))] if writers is None else writers
        for writer in self._writers:
            writer.start_stage(stage, first_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one line.

        Raises:
          core.files.WriteError: the disk is full, or the file cannot be written.
        """
        if not is_writer():
            return
        line = {"stage": self._stage, "step": step, **values}
        append(self._path, json.dumps(line) + "\n")
        for writer in self._writers:
            writer.write(self._stage, step, values)

    def close(self) -> None:
        for writer in self._writers:
            writer.end_stage(self._stage)


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
