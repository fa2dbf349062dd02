"""Runs GenSAR from a config: identifiers, joint training of all tasks, evaluation by beam
search.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from core import distributed, metrics, results
from core import trie as tries
from core.errors import UserError
from core.experiment import Experiment
from core.loop import LoopConfig, run_stage
from core.partitioning import make_mesh
from core.settings import Section, build, none_named
from core.workdir import Workdir
from gensar_jax import (
    identifier_methods,
    identifier_network,
    pieces,
    prediction,
    recorded_inputs,
    sharding,
)
from gensar_jax.examples import GenSARExamples
from gensar_jax.identifier_experiment import IdentifierExperiment
from gensar_jax.identifiers import IdentifierTable, load_table
from gensar_jax.joint_task import JointConfig, JointTask
from gensar_jax.own_identifiers import (
    check_own,
    given_table,
    own_identifiers,
    stand_in,
    table_folder,
    train_table,
)
from gensar_jax.ranking import BeamRanker
from gensar_jax.settings import (
    SAMPLED,
    GenerationSettings,
    MixtureSettings,
    NetworkSettings,
    PromptSettings,
    RateSettings,
    TableSettings,
    VocabularySettings,
    network_values,
)
from gensar_jax.t5 import checkpoints
from gensar_jax.t5.config import T5Config
from gensar_jax.t5.network import Transformer
from input_pipelines import candidates
from input_pipelines.dataset import WHOLE, Dataset
from input_pipelines.log import Log
from input_pipelines.settings import (
    EvaluationSettings,
    HistorySettings,
    UserSettings,
    sections_of_data,
)
from input_pipelines.splits import Examples

_LOG = logging.getLogger(__name__)
TASKS = ("recommendation", "search")
_SEARCH = "search/"
# Items that a beam of the whole catalogue must leave after what the user has seen (READINGS).
_UNSEEN = 20
# Characters of an item's text in a prediction.
_TEXT = 100


class GenSARExperiment(Experiment):
    """Trains identifiers, unless the config names a table, then GenSAR in one stage, `joint`.

    What needs identifiers, such as `examples` and `task`, is there once they are: from the start
    with a table that is given or was trained before, else from `train_identifiers` on.

    Args:
      config: a resolved config (`experiments.resolve.resolve`).
      data: the data it names.

    Raises:
      UserError: a setting that does not exist or fit, or identifiers of another catalogue.
    """

    stages: tuple[str, ...] = (JointTask.name,)
    tasks = TASKS
    data: Dataset

    def __init__(self, config: config_dict.ConfigDict, data: Dataset):
        self.check_settings(config)
        self.config, self.data = config, data
        self._mesh = make_mesh(config.mesh.data, config.mesh.model)
        self._settings = build(JointConfig, config.train.to_dict(), section="train")
        self._shape = build(
            T5Config, config.model.to_dict(), section="model", more=network_values(config)
        )
        table = given_table(config, data)
        self.table: IdentifierTable | None = None
        if table is not None:
            self._open(table)

    def train_identifiers(self) -> None:
        """Trains the identifiers that the config describes, unless a table is there already.

        Raises:
          UserError: as `train_table`.
        """
        if self.table is None:
            self._open(train_table(self.config, self.data))

    def _open(self, table: IdentifierTable) -> None:
        """Makes everything that follows from the identifiers."""
        config, self.table = self.config, table
        self.table_hash = table.hash
        self.examples = GenSARExamples(config, self.data, table)
        self.network = Transformer(
            dataclasses.replace(self._shape, vocab_size=self.examples.vocabulary.size)
        )
        self.partition = sharding.partition_of(self.network, self._mesh)
        if self.partition is not None:
            for name in ("batch_size", "full_batch_size"):
                self.partition.check_batch_size(config.eval[name], f"config.eval.{name}")
        self._ranker = BeamRanker(self.network, self.partition, self.length_penalty)
        self._tries: dict[str, tries.Trie] = {}
        self._inputs: dict[tuple[str, str], np.ndarray] = {}
        self.task = JointTask(
            self.network,
            self._settings,
            stream=self.examples.stream,
            examples_per_epoch=self.examples.mixture.examples_per_epoch,
            evaluate=self.validate,
            selection=self.selection,
            tables=self.constant_tables(),
            seed=config.seed,
            initial=self.first_params,
            partition=self.partition,
        )

    def constant_tables(self) -> dict[str, np.ndarray]:
        """Returns what every checkpoint holds beside parameters: the hash of the identifiers."""
        return {"identifiers": np.frombuffer(bytes.fromhex(self.table_hash), np.uint8)}

    @property
    def length_penalty(self) -> float:
        """Returns the power of an identifier's tokens that divides its log-likelihood."""
        return self.config.eval.get("length_penalty", 0.0)

    @property
    def first_params(self) -> Callable[[], Any] | None:
        """Returns what loads the parameters to start from; None where they are random.

        They are those of the network that learnt the identifiers, where there is one.
        """
        if identifier_network.is_saved(self._identifiers_folder):
            return self._learnt
        return self._pretrained if self._checkpoint else None

    def _learnt(self) -> Any:
        like = jax.eval_shape(self.task.random_state)["params"]
        tokens = self.examples.vocabulary.digest
        return identifier_network.load(self._identifiers_folder, tokens, like)

    @functools.cached_property
    def _identifiers_folder(self) -> str:
        return table_folder(self.config) or own_identifiers(self.config, self.data)[0]

    @property
    def _checkpoint(self) -> str:
        return self.config.model.checkpoint

    def _pretrained(self) -> Any:
        """Loads the parameters of `config.model.checkpoint`, with rows for behaviours and codes."""
        key, text_rows = jax.random.key(self.config.seed), self.examples.vocabulary.text_rows
        return checkpoints.load(self._checkpoint, self.network.config, text_rows, key)

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        sections = super().sections(config)
        own = identifier_methods.experiment_class(config).own_sections

        def seed(config: config_dict.ConfigDict) -> dict[str, int]:
            return {"seed": config.seed}

        return {
            **sections,
            "": Section((*sections[""].classes, TableSettings)),
            **sections_of_data(config, HistorySettings),
            **{f"identifier_{name}": Section(classes, seed) for name, classes in own.items()},
            "vocabulary": Section((VocabularySettings,)),
            "prompts": Section((PromptSettings,)),
            "mixture": Section((MixtureSettings,)),
            "model": Section((NetworkSettings, T5Config), network_values),
            "train": Section((JointConfig, RateSettings)),
            "eval": Section((EvaluationSettings, GenerationSettings, UserSettings)),
        }

    @classmethod
    def check_settings(cls, config: config_dict.ConfigDict) -> None:
        super().check_settings(config)
        prompts, rows, wanted = config.prompts, config.train, config.eval
        if prompts.max_inputs > rows.row_inputs or prompts.max_targets > rows.row_targets:
            raise UserError(
                f"expected packed rows that hold a prompt and a target of "
                f"{prompts.max_inputs} and {prompts.max_targets} tokens, found config.train of "
                f"{rows.row_inputs} and {rows.row_targets}; raise row_inputs and row_targets"
            )
        if not wanted.protocols and not wanted.search_protocols:
            raise UserError(none_named("config.eval.protocols"))
        for task, protocols in zip(TASKS, (wanted.protocols, wanted.search_protocols), strict=True):
            for protocol in protocols:
                _columns(wanted.beam, task, protocol)
        known = [
            metrics.full_name(name, column)
            for name in wanted.metrics
            for task in TASKS
            for protocol in _protocols(task)
            for column in _columns(wanted.beam, task, protocol)
        ]
        if wanted.selection not in known:
            raise UserError(
                f"expected config.eval.selection of {', '.join(known)}, found "
                f"{wanted.selection!r}; pass one of them"
            )

    @classmethod
    def completed(cls, config: config_dict.ConfigDict) -> config_dict.ConfigDict:
        return pieces.completed(config)

    def columns(self, task: str, protocol: str) -> tuple[str, ...]:
        """Names the rows of results.json that a protocol gives: 'search/neg99/exact', for instance.

        Raises:
          UserError: no such task, or it has no such protocol.
        """
        return _columns(self.config.eval.beam, task, protocol)

    def _tested(self) -> list[tuple[str, str]]:
        """Returns each (task, protocol) that ranks at least one example of the test split.

        Raises:
          UserError: none of a task's protocols does.
        """
        config = self.config.eval
        return [
            (task, protocol)
            for task, wanted in zip(TASKS, (config.protocols, config.search_protocols), strict=True)
            for protocol in self.data.possible("test", wanted, task)
        ]

    @functools.cached_property
    def selection(self) -> str:
        """Names the metric that decides; see `input_pipelines.dataset.Dataset.selection`."""
        _, _, column = self.config.eval.selection.partition("/")
        return self.data.selection("search" if column.startswith(_SEARCH) else "recommendation")

    def _validated(self) -> list[str]:
        """Columns of the validation split: the selection's, and the same of searches."""
        _, _, column = self.selection.partition("/")
        searched = self.config.eval.search_protocols and not column.startswith(_SEARCH)
        return [column, *([f"{_SEARCH}{column}"] if searched else [])]

    def check_data(self) -> None:
        """Makes the candidate lists, which are kept, and an example; reads the checkpoint.

        Raises:
          UserError: the data does not have what they need, or as `checkpoints.load`.
        """
        if self.table is None:
            # Refuses what identifiers could not be trained with, and what would be refused once
            # they are.
            check_own(self.config, self.data)
            self._with_stand_in()._check_examples()
        else:
            self._check_examples()
        read = [("validation", *self._parsed(column)[:2]) for column in self._validated()]
        read += [("test", task, protocol) for task, protocol in self._tested()]
        for split, task, protocol in read:
            self.data.check_ranked(split, protocol, task)

    def _with_stand_in(self) -> GenSARExperiment:
        """Returns what this would be with identifiers, of codes that mean nothing."""
        _ = self.selection  # what it logs is logged once
        other = copy.copy(self)
        other._open(stand_in(self.data))
        return other

    def _check_examples(self) -> None:
        if self.first_params is not None:
            self.first_params()
        self.examples.stream(0, 1)

    @classmethod
    def reopened(
        cls, config: config_dict.ConfigDict, folder: str, *, training: bool
    ) -> config_dict.ConfigDict:
        return recorded_inputs.reopened(config, folder)

    def check_recorded(self, workdir: Workdir) -> None:
        """Raises UserError where a run was trained with other texts, tokens or identifiers."""
        if self.table is None:
            raise UserError(
                f"expected the identifiers of the run in {workdir.path}, found none; run "
                "launch.train with this --workdir first"
            )
        recorded_inputs.check(workdir, self.examples, self.table_hash)

    def run(self, workdir: Workdir) -> None:
        """Trains, or continues, and reads the test split once."""
        self.begin(workdir)
        self.train_and_test(workdir, self.task, self.joint_loop())

    def begin(self, workdir: Workdir) -> None:
        """Makes what a run needs before its first stage, and records it."""
        if self.table is None:
            self.train_identifiers()
            self._check_examples()
        assert self.table is not None
        with distributed.first_alone():
            recorded_inputs.record(workdir, self.examples, self.table, self._identifiers_folder)
        mixture = self.examples.mixture
        _LOG.info(
            "mixture of %d examples an epoch: %s; %d tokens, %d of them text",
            mixture.examples_per_epoch,
            ", ".join(f"{name} {count}" for name, count in mixture.counts.items()),
            self.examples.vocabulary.size,
            self.examples.vocabulary.text_rows,
        )

    def train_and_test(self, workdir: Workdir, task: JointTask, loop: LoopConfig) -> Any:
        """Trains a stage, or continues it, reads the test split once; returns its best state."""
        finished = run_stage(task, loop, workdir)
        state = finished.state
        columns = [c for name, protocol in self._tested() for c in self.columns(name, protocol)]
        more = {"still_improving": finished.still_improving}
        params, tables = state["params"], state["tables"]
        self.test_once(workdir, task.name, finished.best_step, columns, params, tables, more)
        return state

    def details(self, split: str, protocol: str) -> dict[str, Any]:
        """Returns further arguments of `results.save` for a row: who was evaluated, with what."""
        task, name, _ = self._parsed(protocol)
        initial = os.path.basename(self._checkpoint) or "from scratch"
        more = {"task": task, "identifiers": self.table_hash, "initial": initial}
        examples, places = self.evaluated(task, split)
        counted = self.data.counted(split, name, task)[places]
        # The clicks of a search are relevant items of one ranking, where all of them are in it.
        rankings = examples.target_row if task == "search" and name in WHOLE else None
        return results.counting(examples.user, counted, more, self.selection, rankings)

    def joint_loop(self) -> LoopConfig:
        """Returns how stage `joint` is trained."""
        config = self.config
        return LoopConfig.fixed_length(
            self.task.max_steps,
            evals=config.train.evals,
            checkpoint_every=config.loop.checkpoint_every,
            log_every=config.loop.log_every,
            learning_rate=config.train.learning_rate,
        )

    def validate(self, params: Any, tables: Any) -> dict[str, float]:
        """Returns metrics of the saved validation users, the selection metric among them."""
        values: dict[str, float] = {}
        for column in self._validated():
            means = self.evaluate(params, tables, "validation", column).means()
            values |= {metrics.full_name(name, column): value for name, value in means.items()}
        return values

    def _parsed(self, column: str) -> tuple[str, str, int | None]:
        """Splits a column into (task, protocol, width of the beam; None scores every candidate)."""
        task = "search" if column.startswith(_SEARCH) else "recommendation"
        protocol, _, how = column.removeprefix(_SEARCH).partition("/")
        known = {c for p in _protocols(task) for c in self.columns(task, p)}
        if column not in known:
            raise UserError(
                f"expected a protocol of {', '.join(sorted(known))}, found {column!r}; pass one"
            )
        return task, protocol, None if how == "exact" else self.config.eval.beam

    def evaluated(self, task: str, split: str) -> tuple[Examples, np.ndarray]:
        """Returns the examples that are evaluated, and their places among all of the split."""
        return self.data.chosen(task, split, self.config.eval[f"{split}_users"])

    def evaluate(self, params: Any, tables: Any, split: str, protocol: str) -> metrics.Sums:
        """Measures one of `columns` on the saved users of a split.

        Raises:
          UserError: no such column, or the parameters were trained with another table.
        """
        if bytes(np.asarray(tables["identifiers"])).hex() != self.table_hash:
            raise UserError(
                f"expected the identifier table {bytes(np.asarray(tables['identifiers'])).hex()} "
                f"that this run was trained with, found {self.table_hash}; pass that table, or "
                "train in another --workdir"
            )
        task, name, width = self._parsed(protocol)
        examples, places = self.evaluated(task, split)
        if (task, split) not in self._inputs:
            self._inputs[task, split] = self.examples.evaluation_inputs(examples)
        inputs = self._inputs[task, split]
        if name in WHOLE:
            return self._whole(params, task, examples, inputs, unseen_only=name == "full")
        self.data.check_ranked(split, name, task)
        lists = self.data.candidate_lists(split, name, task)[places]
        counted = np.flatnonzero(candidates.ranked(lists))
        examples, inputs, lists = examples.take(counted), inputs[counted], lists[counted]
        sums = metrics.Sums(tuple(self.config.eval.metrics))
        forced, tokens = self._forced(task), jnp.asarray(self.examples.tokens_of(task))
        size = self._batch_size("batch_size", len(examples))
        params = self._ranker.place_params(params)
        for start in range(0, len(examples), size):
            rows, mask = _rows(start, size, len(examples))
            prompts, start_tokens, chosen = self._ranker.place(
                (inputs[rows], forced(size), lists[rows])
            )
            ranks = self._ranker.sampled(
                params,
                prompts,
                start_tokens,
                tokens,
                chosen,
                width=lists.shape[1] if width is None else width,
            )
            sums.add(*map(np.asarray, (ranks.above, ranks.tied, mask, ranks.broken)))
        return sums

    def _batch_size(self, name: str, examples: int) -> int:
        """Returns the config's batch size, or as few as hold all examples and fit the mesh."""
        devices = 1 if self.partition is None else self.partition.size
        return min(self.config.eval[name], -(-examples // devices) * devices)

    def _forced(self, task: str) -> Any:
        tokens = self.examples.forced(task)
        return lambda size: np.broadcast_to(np.array(tokens, np.int32), (size, len(tokens)))

    def with_items(
        self, log: Log, texts: Sequence[str], folder: str | None = None
    ) -> GenSARExperiment:
        """Returns the experiment for a log with further items, which its quantizers name.

        Args:
          log: with new items after its own.
          texts: of the new ones.
          folder: of the run that trained the identifiers; None is where this config's own lie.

        Raises:
          UserError: no such run there, or as `IdentifierExperiment.joined`.
        """
        own, config = own_identifiers(self.config, self.data)
        place = Workdir(folder or own)
        if folder:
            config = config_dict.ConfigDict(place.read_config())
        if config.method != identifier_methods.DEFAULT:
            raise UserError(
                f"expected identifiers of {identifier_methods.DEFAULT} in {place.path}, whose "
                f"quantizers name new items too, found those of {config.method}; train on data "
                "with these items"
            )
        if not os.path.isdir(os.path.join(place.path, "checkpoints")):
            raise UserError(
                f"expected the run that trained the identifiers in {place.path}, to name new items "
                "as it named the others, found none; bring that folder back, or train on data with "
                "these items"
            )
        assert self.table is not None
        if load_table(place.path, data_hash=self.data.log.hash).hash != self.table_hash:
            raise UserError(
                f"expected the identifiers {self.table_hash} of this run in {place.path}, found "
                "others; bring that folder back, or train on data with these items"
            )
        table = IdentifierExperiment(config, self.data).joined(place, self.table, texts)
        changed = copy.copy(self)
        changed.data = copy.copy(self.data)
        changed.data.log = log
        changed.table, changed._tries, changed._inputs = table, {}, {}
        changed.examples = self.examples.with_items(log, table)
        return changed

    def items_trie(self, task: str, items: np.ndarray) -> tries.Trie:
        """Builds the trie of some items' identifiers, by numbers, as `trie`."""
        return tries.build(self.examples.tokens_of(task)[items], items)

    def trie(self, task: str) -> tries.Trie:
        """Builds the trie of the whole catalogue's identifiers for 'recommendation' or 'search'."""
        if task not in self._tries:
            tokens = self.examples.tokens_of(task)
            self._tries[task] = tries.build(tokens[1:], np.arange(1, len(tokens)))
        return self._tries[task]

    def _whole(
        self, params: Any, task: str, examples: Examples, inputs: np.ndarray, *, unseen_only: bool
    ) -> metrics.Sums:
        """Ranks against the catalogue without what the user has seen, or without the clicks.

        These are the other clicks of the same search, which both leave out; see
        `input_pipelines.search_protocol`.
        """
        target, _ = candidates.targets(self.data.log, examples)
        left_out = candidates.seen_items if unseen_only else candidates.other_clicks
        left_out_items = left_out(self.data.log, examples)
        config = self.config.eval
        # Long histories together, so that the wide beams which they need are few.
        order = np.argsort((left_out_items > 0).sum(1), kind="stable")
        size = self._batch_size("full_batch_size", len(examples))
        params = self._ranker.place_params(params)
        ranks_of_batches: list[tuple[np.ndarray, ...]] = []
        for start in range(0, len(examples), size):
            rows, mask = _rows(start, size, len(examples))
            rows = order[rows]
            longest = int((left_out_items[rows] > 0).sum(1).max())
            # In steps of the beam, so that few widths are compiled.
            needed = _UNSEEN + longest if unseen_only else config.beam
            width = -(-max(config.beam, needed) // config.beam) * config.beam
            removed = np.zeros((size, max(width, longest)), np.int32)
            removed[:, :longest] = left_out_items[rows, :longest]
            prompts, forced, targets, gone = self._ranker.place(
                (inputs[rows], self._forced(task)(size), target[rows], removed)
            )
            ranks = self._ranker.full(
                params, prompts, forced, self.trie(task), targets, gone, width=width
            )
            real = mask > 0
            ranks_of_batches.append(tuple(np.asarray(part)[real] for part in ranks))
        above, tied, broken = (np.concatenate(parts) for parts in zip(*ranks_of_batches))
        back = np.argsort(order)
        sums = metrics.Sums(tuple(config.metrics))
        sums.add(above[back], tied[back], np.ones(len(back)), broken[back])
        return sums

    def predict(
        self,
        params: Any,
        tables: Any,
        users: Sequence[str] | None,
        top_k: int,
        query: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yields user, rank, item, score and text for each user, best first.

        The score is the log-likelihood of the item's identifier in nats; text begins the item's.

        Raises:
          UserError: an unknown user, neither users nor a query, or as `prediction.top_items`.
        """
        log = self.data.log
        if users is None and query is None:
            raise UserError("expected users or a query, found neither; pass one of them")
        examples = self.data.no_history() if users is None else self.data.whole_histories(users)
        texts = log.item_texts()
        generated = prediction.top_items(
            self.network,
            params,
            self.examples,
            self.trie("recommendation" if query is None else "search"),
            self.data,
            examples,
            top_k,
            query,
            beam=self.config.eval.beam,
            batch_size=self.config.eval.full_batch_size,
            length_penalty=self.length_penalty,
        )
        for row, items in enumerate(generated):
            for rank, (item, score) in enumerate(items, start=1):
                yield {
                    "user": users[row] if users is not None else None,
                    "rank": rank,
                    "item": str(log.item_ids[item]),
                    "score": round(score, 6),
                    "text": texts[item - 1][:_TEXT],
                }

    def abstract_state(self, stage: str) -> Any:
        """Shapes and dtypes of the state, to restore a checkpoint into."""
        del stage
        state = jax.eval_shape(self.task.random_state)
        return state if self.partition is None else self.partition.abstract(state)


def _columns(beam: int, task: str, protocol: str) -> tuple[str, ...]:
    """Names the columns of a protocol, as `Experiment.columns`, for beams of a width."""
    if task not in TASKS:
        raise UserError(f"expected task of {', '.join(TASKS)}, found {task!r}; pass one")
    known = list(_protocols(task))
    if protocol not in known:
        raise UserError(
            f"expected a protocol of {', '.join(known)} for {task}, found {protocol!r}; pass "
            "one of them"
        )
    prefix = _SEARCH if task == "search" else ""
    if protocol in WHOLE:
        return (f"{prefix}{protocol}",)
    return tuple(f"{prefix}{protocol}/{how}" for how in ("exact", f"beam{beam}"))


def _protocols(task: str) -> tuple[str, ...]:
    """Returns what a task can be evaluated against."""
    if task == "search":
        return (*WHOLE, *SAMPLED)
    return ("full", *(p for p in SAMPLED if p != candidates.BM25))


def _rows(start: int, size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row numbers of a batch, the last one filled up with row 0 under a mask of 0."""
    rows = np.arange(start, start + size)
    real = rows < count
    return np.where(real, rows, 0), real.astype(np.float32)
