"""Opens what a run's numbers go to beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow.

`config.loop.writers` names them. What lies on this machine (TensorBoard) fails loudly, as any file
of the run does; what may be a service elsewhere is written from another thread
(`core.background_writer`), so that neither its failure nor its silence ends or delays a training.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from core.background_writer import BackgroundWriter
from core.errors import Preempted, UserError
from core.files import read_json, write_atomically
from core.run_writer import RunWriter
from core.tensorboard_writer import TensorBoardWriter
from core.workdir import Workdir, is_writer

# In the run's folder: under which id each service knows the run.
IDS_FILE = "writers.json"
_TENSORBOARD = "tensorboard"
# By name in `config.loop.writers`: what the service is called in messages.
_SERVICES = {"wandb": "Weights & Biases", "mlflow": "MLflow"}
WRITERS = (_TENSORBOARD, *_SERVICES)


def check_writers(names: Sequence[str]) -> None:
    """Refuses names that are no writers, and writers whose package is not installed.

    Args:
      names: as in `config.loop.writers`.

    Raises:
      UserError: there is such a one; names the extra that installs it.
    """
    for name in names:
        if name not in WRITERS:
            raise UserError(
                f"expected config.loop.writers of {', '.join(WRITERS)}, found "
                f"{name!r}; pass these, several as \"('tensorboard', 'wandb')\""
            )
        spec = importlib.util.find_spec(name) if name in _SERVICES else None
        # A folder of that name here, such as W&B leaves behind, is found too, without an origin.
        if name in _SERVICES and (spec is None or spec.origin is None):
            raise UserError(
                f"expected the package {name} for config.loop.writers, found none; install the "
                f"extra with pip install -e '.[{name}]', or leave {name!r} out"
            )


@contextlib.contextmanager
def logging_run(workdir: Workdir, config: Mapping[str, Any]) -> Iterator[None]:
    """Opens the writers of a run for a block, as `workdir.writers`; all but process 0 have none.

    A run that is continued goes on under the same ids, which its folder keeps.

    Args:
      config: the resolved config, nested; the services show it.

    Raises:
      UserError: a service does not begin a new run. One that does not continue a run costs a
        warning only.
    """
    names = list(config["loop"]["writers"]) if is_writer() else []
    status = "failed"

    def close(writer: RunWriter) -> None:
        writer.close(status)

    with contextlib.ExitStack() as stack:
        writers: list[RunWriter] = []
        for name in names:
            writer = _opened(name, workdir, config)
            writers.append(writer)
            stack.callback(close, writer)
        workdir.writers = writers
        stack.callback(setattr, workdir, "writers", None)
        try:
            yield
            for writer in writers:
                writer.write_results(workdir.read_results()["rows"])
            status = "finished"
        except Preempted:
            status = "stopped"
            raise


def _opened(name: str, workdir: Workdir, config: Mapping[str, Any]) -> RunWriter:
    if name == _TENSORBOARD:
        return TensorBoardWriter(workdir.file("events"))
    known = _ids(workdir).get(name)
    remember = functools.partial(_remember, workdir, name)
    run = os.path.basename(workdir.path)
    opening: Callable[[], RunWriter]
    # Imported here: the packages are optional, and take seconds.
    if name == "wandb":
        from core.wandb_writer import open_wandb

        opening = functools.partial(open_wandb, workdir.path, run, config, known, remember)
    else:
        from core.mlflow_writer import open_mlflow

        opening = functools.partial(open_mlflow, run, config, known, remember)
    return BackgroundWriter(_SERVICES[name], opening, must_open=known is None)


def _ids(workdir: Workdir) -> dict[str, dict[str, str]]:
    """Returns what each service needs to find the run again, by the writer's name."""
    path = os.path.join(workdir.path, IDS_FILE)
    if not os.path.lexists(path):
        return {}
    remedy = "remove the file, and the services begin a new run"
    ids = read_json(path, "the ids of a run's writers", remedy)
    for name, values in ids.items():
        whole = isinstance(values, dict) and isinstance(values.get("id"), str)
        if not whole or not all(isinstance(value, str) for value in values.values()):
            raise UserError(f"expected an 'id' of {name} in {path}, found none; {remedy}")
    return ids


def _remember(workdir: Workdir, name: str, values: Mapping[str, str]) -> None:
    ids = _ids(workdir) | {name: dict(values)}
    write_atomically(workdir.file(IDS_FILE), json.dumps(ids, indent=2) + "\n")
