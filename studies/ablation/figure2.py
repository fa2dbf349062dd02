"""Makes Figure 2 of LCR-SER: UniSAR trained anew on the searches near the clicks, by threshold.

The first run keeps all searches; its item and word vectors, fixed from then on, say which searches
the others keep (`input_pipelines.search_filter`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from core import results
from core.files import save_npz
from core.loop import NotFinite
from core.workdir import Workdir, check_workdir, open_workdir
from experiments.methods import open_experiment
from experiments.restored import Restored
from experiments.teacher import open_teacher
from input_pipelines.dataset import Dataset
from studies.ablation.runs import Run

# Of the run that keeps all searches, under the sweep's folder.
VECTORS = "embedding.npz"


def check_runs(runs: Sequence[Run], data: Dataset) -> None:
    """Finds what can be wrong with the runs before one is written. Raises UserError."""
    for run in runs:
        check_workdir(run.path, run.config.to_dict())
    if runs:
        experiment: Any = open_experiment(runs[0].config, data)
        experiment.check_data()


def train_run(run: Run, data: Dataset) -> str | None:
    """Trains and tests one run; returns what stopped it, None where it ended.

    Args:
      data: with all searches; a run that keeps some of them reads its own.
    """
    own = Dataset(run.config, run.path) if _filters(run) else data
    experiment = open_experiment(run.config, own, open_teacher(run.config, own))
    with open_workdir(run.path, run.config.to_dict(), own.log.hash) as opened:
        try:
            experiment.run(opened)
        except NotFinite as error:
            return str(error)
        results.write_summary(opened, own.label)
    return None


def export_vectors(path: str, target: str) -> None:
    """Writes the item and word vectors of the run in `path` to the file `target`."""
    tables: Any = Restored(path).tables
    save_npz(target, {name: np.asarray(tables[name]) for name in ("item", "word")})


def run_all(
    runs: Sequence[Run],
    data: Dataset,
    workdir: Workdir,
    train: Callable[[Run, Dataset], str | None] = train_run,
    export: Callable[[str, str], None] = export_vectors,
) -> dict[str, str]:
    """Trains and tests one run after another; returns by name what stopped one.

    Vectors come from the first run with all searches that ends, whatever its seed.
    """
    stopped = {}
    for run in runs:
        if _filters(run) and not os.path.exists(workdir.file(VECTORS)):
            stopped[run.name] = (
                "expected the vectors of a run with all searches, found that all of these have "
                "stopped; lower the learning rate and pass another --workdir"
            )
            continue
        why = train(run, data)
        if why is not None:
            stopped[run.name] = why
        elif not _filters(run) and not os.path.exists(workdir.file(VECTORS)):
            export(run.path, workdir.file(VECTORS))
    return stopped


def _filters(run: Run) -> bool:
    return "search_filter" in run.config.data
