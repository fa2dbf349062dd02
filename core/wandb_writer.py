"""Writes a run's scalars to Weights & Biases."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import wandb

from core.result_rows import values_by_name

_LOG = logging.getLogger(__name__)
_PROJECT = "lcrsr"
_EXIT_CODES = {"finished": 0, "stopped": 255, "failed": 1}


def open_wandb(
    folder: str,
    name: str,
    config: Mapping[str, Any],
    known: Mapping[str, str] | None,
    remember: Callable[[Mapping[str, str]], None],
) -> WandbWriter:
    """Begins a run, or continues the known one.

    W&B's own variables hold: WANDB_MODE=offline needs no network and no account, WANDB_PROJECT,
    WANDB_ENTITY and others say where the run goes.

    Args:
      folder: W&B keeps its files in `wandb` below it.
      name: of the run.
      config: nested; shown beside the run.
      known: what `remember` was given before; None for a new run.
      remember: is told the run's id as soon as there is one.

    Raises:
      wandb.errors.Error: no account, or no answer.
    """
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        id=known["id"] if known else None,
        resume="allow",
        name=name,
        dir=folder,
        config=dict(config),
        # Runs of a sweep are open beside each other.
        reinit="create_new",
        settings=wandb.Settings(console="off", silent=True, init_timeout=60, finish_timeout=15),
    )
    remember({"id": run.id})
    where = f"offline, see `wandb sync` and {run.dir}" if run.offline else run.url
    _LOG.info("Weights & Biases: run %s, %s", run.id, where)
    return WandbWriter(run)


class WandbWriter:
    """Writes 'STAGE/METRIC' over 'STAGE/step'; a `core.run_writer.RunWriter`.

    W&B's own step only grows. The stage's step is a value of its own, so that steps may be written
    again after a kill: the chart then shows both.
    """

    def __init__(self, run: Any):
        self._run = run

    def start_stage(self, stage: str, first_step: int) -> None:
        self._run.define_metric(f"{stage}/step", hidden=True)
        self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        named = {f"{stage}/{name}": value for name, value in values.items()}
        self._run.log({f"{stage}/step": step, **named})

    def end_stage(self, stage: str) -> None:
        """Needs nothing: a run has all stages."""

    def write_results(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._run.summary.update(values_by_name(rows))

    def close(self, status: str) -> None:
        self._run.finish(exit_code=_EXIT_CODES[status])
