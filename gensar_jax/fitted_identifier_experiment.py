"""Writes tables of identifiers, and makes those that are fitted at once, without training."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import os
from typing import Any, ClassVar

from ml_collections import config_dict

from core import distributed, results
from core.experiment import Experiment, WriterSettings
from core.settings import Section
from core.workdir import Workdir, commit_id
from gensar_jax import identifiers
from gensar_jax.identifiers import IdentifierTable
from gensar_jax.settings import Described
from input_pipelines.dataset import Dataset
from input_pipelines.settings import HistorySettings, sections_of_data

_LOG = logging.getLogger(__name__)
_STAGE, SPLIT = "identifiers", "catalogue"


class TableExperiment(Experiment):
    """Leaves identifiers.npz and identifiers.json: base of what makes identifiers of its own kind.

    Args:
      config: a resolved config (`experiments.resolve.resolve`).
      data: the data it names.

    Attributes:
      own_sections: what describes its sections of a config, by name.
      shared_sections: further sections, which GenSAR has under the same name.
    """

    stages: tuple[str, ...] = (_STAGE,)
    data: Dataset
    own_sections: ClassVar[Described] = {}
    shared_sections: ClassVar[Described] = {}

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        def seed(config: config_dict.ConfigDict) -> dict[str, int]:
            return {"seed": config.seed}

        every = cls.own_sections | cls.shared_sections
        return {
            **super().sections(config),
            **sections_of_data(config, HistorySettings),
            "loop": Section((WriterSettings,)),
            **{name: Section(classes, seed) for name, classes in every.items()},
        }

    def __init__(self, config: config_dict.ConfigDict, data: Dataset):
        self.config, self.data = config, data

    def write(self, workdir: Workdir, table: IdentifierTable, metrics: dict[str, Any]) -> None:
        """Writes the table, and numbers that describe it.

        Raises:
          UserError: as `identifiers.save_table`.
        """
        written = {
            "seed": self.config.seed,
            "commit": commit_id(),
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        report = {"data": self.data.label, "metrics": metrics}
        table = dataclasses.replace(table, method=self.config.method)
        identifiers.save_table(workdir.path, table, {**report, **written})
        workdir.write_result_row(
            {
                "stage": _STAGE,
                "split": SPLIT,
                "protocol": SPLIT,
                "step": 0,
                "examples": table.num_items,
                "metrics": metrics,
                "selected_on": "nothing",
                "data": self.data.label,
                "data_hash": self.data.log.hash,
                "data_split": self.config.data.split,
                "identifiers": table.hash,
                "device": results.device(),
                **written,
            }
        )
        _LOG.info("identifier table %s in %s", table.hash, os.path.join(workdir.path, ""))


class FittedIdentifierExperiment(TableExperiment):
    """Fits one stage, `identifiers`; arguments as of `TableExperiment`.

    Of several processes the first fits and writes, and the others wait for it.
    """

    _made: tuple[IdentifierTable, dict[str, Any]] | None = None

    def fit(self) -> tuple[IdentifierTable, dict[str, Any]]:
        """Returns the table, and numbers that describe it; waits for no other process.

        Raises:
          UserError: the data does not have what the identifiers are made of.
        """
        raise NotImplementedError

    def check_data(self) -> None:
        """Fits, so that what is refused is so before anything is written."""
        distributed.by_first(self._fit)

    def _fit(self) -> None:
        self._made = self.fit()

    def run(self, workdir: Workdir) -> None:
        """Fits, measures and writes the table once."""
        distributed.by_first(lambda: self._write_once(workdir))

    def _write_once(self, workdir: Workdir) -> None:
        if not workdir.read_results()["rows"]:
            self.write(workdir, *(self._made or self.fit()))
