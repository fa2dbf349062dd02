"""Writes a run's scalars to MLflow."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import mlflow
from mlflow.entities import Metric, Param

from core.result_rows import values_by_name

_LOG = logging.getLogger(__name__)
_EXPERIMENT = "lcrsr"
_STATUSES = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
# MLflow takes so many parameters or metrics at once, and values of so many characters.
_AT_ONCE, _LONGEST = 100, 6000


def open_mlflow(
    name: str,
    config: Mapping[str, Any],
    known: Mapping[str, str] | None,
    remember: Callable[[Mapping[str, str]], None],
) -> MlflowWriter:
    """Begins a run, or continues the known one.

    MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say where the run goes. Without the first it is
    the store that MLflow takes in the current folder, where a continued run is found again from any
    folder.

    Args:
      name: of the run.
      config: nested; its values are the run's parameters.
      known: what `remember` was given before; None for a new run.
      remember: is told the run's id as soon as there is one.

    Raises:
      mlflow.exceptions.MlflowException: no answer, or no such run in the store.
    """
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    told = bool(os.environ.get("MLFLOW_TRACKING_URI"))
    address = mlflow.get_tracking_uri()
    if known is not None and not told:
        address = known.get("tracking_uri", address)
    client = mlflow.MlflowClient(tracking_uri=address)
    if known is None:
        run = client.create_run(_experiment(client), run_name=name).info.run_id
        # An address that the user gave may hold a password.
        remember({"id": run} if told else {"id": run, "tracking_uri": address})
        flat = flax.traverse_util.flatten_dict(dict(config), sep=".")
        params = [Param(key, json.dumps(value)[:_LONGEST]) for key, value in flat.items()]
        for start in range(0, len(params), _AT_ONCE):
            client.log_batch(run, params=params[start : start + _AT_ONCE])
    else:
        run = known["id"]
        client.update_run(run, status="RUNNING")
    _LOG.info("MLflow: run %s of experiment %s", run, _experiment_name())
    return MlflowWriter(client, run)


def _experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)


def _experiment(client: Any) -> str:
    """Returns the id of the experiment, which is made where there is none."""
    name = _experiment_name()
    experiment = client.get_experiment_by_name(name)
    return experiment.experiment_id if experiment else client.create_experiment(name)


class MlflowWriter:
    """Writes 'STAGE/METRIC' with its step; a `core.run_writer.RunWriter`.

    '@' becomes '_at_', since MLflow takes no other sign for it. Steps that are written again after
    a kill stand beside the first ones. MLflow shows an infinite value as the largest float.
    """

    def __init__(self, client: Any, run: str):
        self._client, self._run = client, run

    def start_stage(self, stage: str, first_step: int) -> None:
        """Needs nothing: a run has all stages."""

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._log({f"{stage}/{name}": value for name, value in values.items()}, step)

    def end_stage(self, stage: str) -> None:
        """Needs nothing: every value is written at once."""

    def write_results(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            self._log(values_by_name([row]), row["step"])

    def close(self, status: str) -> None:
        self._client.set_terminated(self._run, _STATUSES[status])

    def _log(self, values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [
            Metric(name.replace("@", "_at_"), value, now, step) for name, value in values.items()
        ]
        for start in range(0, len(metrics), _AT_ONCE):
            self._client.log_batch(self._run, metrics=metrics[start : start + _AT_ONCE])
