"""Figure 2 of LCR-SER: UniSAR trained anew on the searches near the clicks, by threshold.

The first run keeps all searches; its item and word vectors, fixed from then on, say which searches
the others keep (`input_pipelines.search_filter`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
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


def run_all(runs: Sequence[Run], data: Dataset, workdir: Workdir) -> dict[str, str]:
    """Trains and tests one run after another; returns by name what stopped one.

    Vectors are those of the first run with all searches that ends, whatever its seed.
    """
    stopped = {}
    for run in runs:
        filtered = "search_filter" in run.config.data
        if filtered and not os.path.exists(workdir.file(VECTORS)):
            stopped[run.name] = (
                "expected the vectors of a run with all searches, found that all of these have "
                "stopped; lower the learning rate and pass another --workdir"
            )
            continue
        own = Dataset(run.config, run.path) if filtered else data
        experiment = open_experiment(run.config, own, open_teacher(run.config, own))
        opened = open_workdir(run.path, run.config.to_dict(), own.log.hash)
        try:
            experiment.run(opened)
        except NotFinite as error:
            stopped[run.name] = str(error)
            continue
        results.write_summary(opened, own.label)
        if not filtered and not os.path.exists(workdir.file(VECTORS)):
            _export(run.path, workdir.file(VECTORS))
    return stopped


def _export(path: str, target: str) -> None:
    tables: Any = Restored(path).tables
    save_npz(target, {name: np.asarray(tables[name]) for name in ("item", "word")})
