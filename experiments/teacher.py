"""Makes a teacher of a finished run: its scores of the candidates that another run trains on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict

from core.errors import UserError
from experiments.restored import Restored
from input_pipelines.dataset import Dataset
from lcrsr.embedding import look_up
from lcrsr.lcr_ser import TEACHER

Batches = Callable[[int], Iterator[dict[str, np.ndarray]]]
# What a batch's shape and contents depend on.
_SHARED = ("rec_length", "search_length", "words", "clicks", "use_search", "segmenter", "split")


class Teacher:
    """Scores with a run whose model is a `Ranker`, on one device.

    Args:
      run: the finished run.
      config: the student's, resolved.
      data: what the student trains on.

    Raises:
      UserError: the run has other data, other histories, or no scores.
    """

    def __init__(self, run: Restored, config: config_dict.ConfigDict, data: Dataset):
        self.run, workdir = run, run.workdir.path
        if run.params is None or run.experiment.partition is not None:
            raise UserError(
                f"expected a trained ranker on one device in {workdir}, found another run; pass "
                "the folder of one as --config.train.teacher"
            )
        if run.data.log.hash != data.log.hash:
            raise UserError(
                f"expected a teacher of the log {data.log.hash}, found one of "
                f"{run.data.log.hash} in {workdir}; train it on this data"
            )
        theirs, ours = run.workdir.read_setting("data", dict), config.data
        for key in _SHARED:
            if theirs.get(key) != ours[key]:
                raise UserError(
                    f"expected a teacher with config.data.{key}={ours[key]!r}, found "
                    f"{theirs.get(key)!r} in {workdir}; both read the same batches"
                )
        ranker = run.experiment.ranker
        if config.train.targets_per_window > 1 and not ranker.trains_on_windows:
            raise UserError(
                f"expected config.train.targets_per_window=1 with the teacher in {workdir}, found "
                f"{config.train.targets_per_window}: {run.experiment.config.method} scores the "
                "history of one target at a time; set it"
            )

        def scores(params, tables, batch):
            rows = look_up(tables, batch)
            return ranker.score(params, ranker.represent(params, batch, rows), rows)

        self._scores: Callable[..., jax.Array] = jax.jit(scores)

    def with_scores(self, batches: Batches) -> Batches:
        """Adds the teacher's logits float32 [B, N] to each batch."""
        params, tables = self.run.params, self.run.tables_with_words

        def scored(start: int) -> Iterator[dict[str, Any]]:
            for batch in batches(start):
                yield batch | {TEACHER: self._scores(params, tables, batch)}

        return scored


def open_teacher(config: config_dict.ConfigDict, data: Dataset) -> Teacher | None:
    """Opens the run and the stage of it that `config.train` names; None where it names none.

    Raises:
      UserError: no such run or stage, or as `Teacher`.
    """
    path = config.get("train", {}).get("teacher")
    if not path:
        return None
    return Teacher(Restored(path, config.train.teacher_stage or None), config, data)
