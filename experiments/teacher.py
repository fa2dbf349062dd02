"""A finished run as a teacher: its scores of the candidates that another run trains on."""

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
      workdir: its folder.
      config: the student's, resolved; names the stage that teaches.
      data: what the student trains on.

    Raises:
      UserError: no such run, one of other data or other histories, or one without scores.
    """

    def __init__(self, workdir: str, config: config_dict.ConfigDict, data: Dataset):
        self._run = Restored(workdir, config.pretrain.get("teacher_stage") or None)
        if self._run.params is None or getattr(self._run.experiment, "partition", None) is not None:
            raise UserError(
                f"expected a trained ranker on one device in {workdir}, found another run; pass "
                "the folder of one as --config.pretrain.teacher"
            )
        if self._run.data.log.hash != data.log.hash:
            raise UserError(
                f"expected a teacher of the log {data.log.hash}, found one of "
                f"{self._run.data.log.hash} in {workdir}; train it on this data"
            )
        theirs, ours = self._run.workdir.read_setting("data", dict), config.data
        for key in _SHARED:
            if theirs.get(key) != ours[key]:
                raise UserError(
                    f"expected a teacher with config.data.{key}={ours[key]!r}, found "
                    f"{theirs.get(key)!r} in {workdir}; both read the same batches"
                )
        ranker = self._run.experiment.ranker

        def scores(params, tables, batch):
            rows = look_up(tables, batch)
            return ranker.score(params, ranker.represent(params, batch, rows), rows)

        self._scores: Callable[..., jax.Array] = jax.jit(scores)

    def with_scores(self, batches: Batches) -> Batches:
        """The same batches with the teacher's logits float32 [B, N] in each."""
        params, tables = self._run.params, self._run.tables_with_words

        def scored(start: int) -> Iterator[dict[str, Any]]:
            for batch in batches(start):
                yield batch | {TEACHER: self._scores(params, tables, batch)}

        return scored


def open_teacher(config: config_dict.ConfigDict, data: Dataset) -> Teacher | None:
    """Opens the run that `config.pretrain.teacher` names; None where it names none.

    Raises:
      UserError: as `Teacher`.
    """
    path = config.get("pretrain", {}).get("teacher")
    return Teacher(path, config, data) if path else None
