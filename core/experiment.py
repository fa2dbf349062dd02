"""Defines the protocol between programs and the methods that they train, evaluate and ask.

A program that would have to know which method it has in hand shows that something is missing here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from ml_collections import config_dict

from core import metrics, results, settings
from core.errors import UserError
from core.loop import LoopConfig, StageResult
from core.run_logging import WRITERS
from core.settings import Count, Named, Rule, RunPlace, Section, Seed, Settings
from core.workdir import Workdir

# Yields stages to train and is sent their results.
Plan = Generator[tuple[Any, LoopConfig], StageResult, None]
# The key of config.eval with the protocols of a task.
_PROTOCOLS = {"recommendation": "protocols", "search": "search_protocols"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """Says what is trained on which data: what stands in no section of a config.

    Attributes:
      continue_from: folder of the finished run that training goes on from; '' starts anew.
    """

    method: Named
    dataset: Named
    data_dir: str
    cache_dir: Named
    seed: Seed
    continue_from: RunPlace = ""


_EXTENT = Rule("of at least 1, or -1 for what the other leaves", lambda n: n >= 1 or n == -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings(Settings):
    """Holds the extents of `core.partitioning.make_mesh`."""

    data: Annotated[int, _EXTENT]
    model: Annotated[int, _EXTENT]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WriterSettings(Settings):
    """Names the writers of a run's numbers (`core.run_logging`)."""

    writers: Annotated[tuple[Annotated[str, settings.one_of(*WRITERS)], ...], settings.NamesOnce()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings(Settings):
    """Says how often a training looks at itself, in updates."""

    log_every: Count
    checkpoint_every: Count


class Experiment:
    """Joins a method with its config and data: base of all that can be trained or fitted.

    Making one reads the data but trains nothing. What a method cannot do raises `UserError`.

    Attributes:
      config: resolved (`experiments.resolve.resolve`).
      data: an `input_pipelines.dataset.Dataset`.
      stages: names of what `run` leaves behind, the one to use first.
      tasks: what it answers, 'recommendation' or 'search'; empty where it ranks nothing.
      ranker: the `lcrsr.ranker.Ranker` that it trains; None of other methods.
      partition: how its state lies on the devices; None on one device.
      needs_examples: whether it is opened with the examples that it trained on; without them the
        names, texts and latest events of the log are enough to score
        (`input_pipelines.kept_data`).
    """

    config: config_dict.ConfigDict
    data: Any
    stages: tuple[str, ...]
    tasks: tuple[str, ...] = ()
    ranker: Any = None
    partition: Any = None
    needs_examples: bool = True

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        """Returns what describes each section of a config, in the order they are checked in.

        The settings in no section stand under ''. A method adds its own.
        """
        del config
        return {
            "": Section((RunSettings,)),
            "mesh": Section((MeshSettings,)),
            "loop": Section((LoopSettings, WriterSettings)),
        }

    @classmethod
    def check_settings(cls, config: config_dict.ConfigDict) -> None:
        """Finds what is wrong with a config before any data is read or anything is written.

        A method adds what settings of two sections must have in common.

        Raises:
          UserError: a setting is unknown, missing, of another kind, out of its range, or does not
            go with another.
        """
        settings.check(config, cls.sections(config))

    @classmethod
    def completed(cls, config: config_dict.ConfigDict) -> config_dict.ConfigDict:
        """Returns a config with the settings that follow from others; its paths are whole.

        Raises:
          UserError: they would follow from a file that is not there.
        """
        return config

    @classmethod
    def reopened(
        cls, config: config_dict.ConfigDict, folder: str, *, training: bool
    ) -> config_dict.ConfigDict:
        """Returns the config with which the run in a folder is opened again.

        Args:
          config: as the run was begun with it.
          folder: of the run; it need not exist yet.
          training: whether the run goes on training. What only training reads, such as a teacher,
            need not be there otherwise.
        """
        del folder, training
        return config

    def check_data(self) -> None:
        """Makes what a run reads, such as candidate lists; nothing of the run is written.

        Raises:
          UserError: the data does not have what a run needs.
        """

    def check_recorded(self, workdir: Workdir) -> None:
        """Raises UserError where the run in a workdir was trained with other inputs than these."""

    def fitted_arrays(self) -> dict[str, np.ndarray]:
        """Returns what a method that is fitted at once scores with, by name; {} of others."""
        return {}

    def run(self, workdir: Workdir) -> None:
        """Trains every stage, or continues it, and reads the test split once for each."""
        raise NotImplementedError

    def abstract_state(self, stage: str) -> Any:
        """Returns shapes, dtypes and shardings of a stage's state, to restore a checkpoint into."""
        del stage
        raise self._ranks_nothing()

    def columns(self, task: str, protocol: str) -> tuple[str, ...]:
        """Names what `evaluate` measures for a protocol of a task, such as 'search/neg99/exact'.

        Raises:
          UserError: the method does not answer the task, or has no such protocol.
        """
        del task, protocol
        raise self._ranks_nothing()

    def tested_on(self, task: str | None) -> tuple[str, tuple[str, ...]]:
        """Returns a task and the protocols that the run's own test has for it.

        Args:
          task: None for the first task that the run is tested on.
        """
        protocols = {name: tuple(self.config.eval.get(_PROTOCOLS[name], ())) for name in self.tasks}
        if task is None:
            task = next((name for name in self.tasks if protocols[name]), None)
            task = task or (self.tasks or ("recommendation",))[0]
        return task, protocols.get(task, ())

    def evaluate(self, params: Any, tables: Any, split: str, protocol: str) -> metrics.Sums:
        """Measures one of `columns` on a split.

        Raises:
          UserError: no such column, or `params` belong to other inputs.
        """
        del params, tables, split, protocol
        raise self._ranks_nothing()

    def details(self, split: str, protocol: str) -> dict[str, Any]:
        """Returns `users`, `more`, maybe `rankings` of `results.save` for a column of a split."""
        del split, protocol
        raise self._ranks_nothing()

    def groups(self, protocol: str, sums: metrics.Sums) -> dict[str, Any]:
        """Returns entries of a test's row about groups of its users; none by default."""
        del protocol, sums
        return {}

    def predict(
        self,
        params: Any,
        tables: Any,
        users: Sequence[str] | None,
        top_k: int,
        query: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yields a row for every item that is recommended or found, best first for each user.

        Args:
          users: ids as in the raw data; None, with a query, is someone without a history.
          top_k: items of each user.
          query: for the items of a search.

        Raises:
          UserError: an unknown user, too many items, or a question that the method does not answer.
        """
        del params, tables, users, top_k, query
        raise UserError(
            f"expected the run of a ranker or of gensar, found one of {self.config.method}; pass "
            "another --workdir"
        )

    def scoring_tables(self, tables: Any) -> Any:
        """Returns trained tables as a model's own functions score with them."""
        return tables

    def vectors(self, tables: Any, table: str) -> tuple[np.ndarray, list[str]]:
        """Returns the rows float32 [V, D] of a table and their names, padding left out.

        Args:
          tables: as trained.
          table: 'item', 'user' or 'word'.

        Raises:
          UserError: the method has no such table.
        """
        raise self.no_vectors(table, ())

    def no_vectors(self, table: str, known: Sequence[str]) -> UserError:
        """Makes the error of a table that a method does not have."""
        has = f"the tables {', '.join(known)}" if known else "no vectors at all"
        return UserError(
            f"expected a run with {table} vectors, found one of {self.config.method}, which has "
            f"{has}; pass another --workdir or --table"
        )

    def _ranks_nothing(self) -> UserError:
        return UserError(
            f"expected the workdir of a model that ranks items, found one of {self.config.method}; "
            "pass the workdir of a model trained with them"
        )

    def test_once(
        self,
        workdir: Workdir,
        stage: str,
        step: int,
        columns: Sequence[str],
        params: Any,
        tables: Any,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Reads the test split for a finished stage; a saved row is not computed again.

        Args:
          columns: what is measured.
          more: further entries of the rows.

        Raises:
          core.errors.Preempted: SIGTERM or Ctrl-C; the columns before are saved.
          core.loop.NotFinite: scores are NaN; the columns before are saved.
        """
        done = results.tested(workdir)
        for column in columns:
            if (stage, step, column) in done:
                continue
            with results.testing(stage, column):
                sums = self.evaluate(params, tables, "test", column)
            details = self.details("test", column)
            results.save(
                workdir,
                sums,
                stage=stage,
                split="test",
                protocol=column,
                step=step,
                config=self.config,
                origin=self.data.origin,
                users=details["users"],
                rankings=details.get("rankings"),
                more=details["more"] | self.groups(column, sums) | dict(more or {}),
            )
