"""Joins a config's model with its data: makes the training task, evaluates states, runs the
stages.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict

from core import metrics, results
from core.best_items import best_items
from core.errors import UserError
from core.experiment import Experiment, Plan
from core.loop import LoopConfig, StageResult, run_stage
from core.partitioning import MODEL, Partition, make_mesh
from core.settings import Section, Settings, build
from core.workdir import Workdir
from input_pipelines import batches
from input_pipelines.candidates import TouchedItems
from input_pipelines.dataset import Dataset
from input_pipelines.protocols import PROTOCOLS
from input_pipelines.settings import (
    BatchSettings,
    EvaluationSettings,
    ProtocolSettings,
    sections_of_data,
)
from lcrsr import search_evaluation
from lcrsr.embedding import PARTITION_RULES, with_item_words
from lcrsr.evaluation import Evaluator, check_top_k
from lcrsr.floors import floors
from lcrsr.ranker import Ranker, shares_negatives
from lcrsr.ranker_task import RankerTask, TrainConfig
from lcrsr.search_evaluation import SearchEvaluation
from lcrsr.settings import ScheduleSettings
from lcrsr.spectral_start import spectral_rows

_LOG = logging.getLogger(__name__)
_SEARCH = "search/"
# Updates of an epoch at least, and the batches to choose from, where the size of the log decides.
_UPDATES, _BATCHES = 300, (32, 1024)
# Epochs of a training, where the size of the log decides: these on logs of so many examples.
_EPOCHS, _OF_EXAMPLES = 4.0, 2**17
# Negatives of a target, and of all targets of a batch, at least, where the batch's size decides.
_NEGATIVES, _SHARED = 4, 1024
# Of every ranking of the test split: for coverage and its like, which come later.
KEPT_ITEMS = 20
# Protocols that early stopping may go by.
_SELECTING = ("neg99", "full")


def partition_of(
    config: config_dict.ConfigDict, table_width: int | None = None
) -> Partition | None:
    """Returns the mesh of `config.mesh` with the rules of its tables; None for one device.

    Args:
      table_width: D of the tables' rows, by which they are packed; None packs nothing.

    Raises:
      UserError: the mesh does not fit the devices, or a batch size does not fit the mesh.
    """
    mesh = config.mesh
    if (mesh.data, mesh.model) == (1, 1) and jax.process_count() == 1:
        return None
    partition = Partition(make_mesh(mesh.data, mesh.model), PARTITION_RULES, table_width)
    if partition.size == 1:
        return None
    sizes = {"train": ("batch_size",), "eval": ("batch_size", "full_batch_size")}
    if "rl" in config:
        sizes["rl"] = ("batch_size",)
    for section, names in sizes.items():
        for name in names:
            partition.check_batch_size(config[section][name], f"config.{section}.{name}")
    if config.train.table_update == "dense" and partition.mesh.shape[MODEL] > 1:
        raise UserError(
            f"expected config.mesh.model=1 with train.table_update='dense', found {mesh.model}: "
            "dense updates need whole tables; cut batches only, with config.mesh.data"
        )
    return partition


def batch_for(examples: int) -> int:
    """Chooses a batch by the size of the log: `train.batch_size` where that is 0.

    It is the largest power of two that leaves an epoch at least 300 updates, from 32 to 1,024:
    large logs get UniSAR's batch, Amazon Beauty the 256 that validation chose there
    (docs/decisions.md). The rate stays the config's.
    """
    return 2 ** int(np.clip(np.log2(max(1.0, examples / _UPDATES)), *np.log2(_BATCHES)))


def epochs_for(examples: int) -> float:
    """Chooses how long to train by the size of the log: `train.max_epochs` where that is 0.

    It is 4 epochs from 131,072 examples on, and on smaller logs more by the root of how much
    smaller they are (docs/recipe.md), in whole epochs.
    """
    return float(round(_EPOCHS * max(1.0, _OF_EXAMPLES / max(1, examples)) ** 0.5))


def negatives_for(batch_size: int) -> int:
    """Chooses the negatives of a target that a batch shares: `data.train_negatives` where that is
    0.

    They are 4, as UniSAR's, or on small batches what makes 1,024 in all (docs/recipe.md).
    """
    return max(_NEGATIVES, _SHARED // batch_size)


def check_loss(config: config_dict.ConfigDict, ranker: Ranker) -> None:
    """Refuses settings that a ranker's loss cannot train with.

    Raises:
      UserError: no negatives for a loss that takes a target's own, or updates of touched rows for
        one that is over all items.
    """
    update = config.train.table_update
    counts_negatives = not ranker.needs_whole_tables and not shares_negatives(ranker)
    if counts_negatives and not config.data.train_negatives:
        raise UserError(
            "expected config.data.train_negatives above 0, found 0; set such a value: the target "
            "alone teaches no order"
        )
    if ranker.needs_whole_tables and update != "dense":
        raise UserError(
            f"expected config.train.table_update='dense', found {update!r}: this loss is over all "
            "items, and touched rows alone get no gradient from it; set it, or another loss"
        )


def no_batches(start: int) -> Iterator[Any]:
    """Returns no batches: of a task that is made for the shapes of its state alone."""
    del start
    return iter(())


def _with_sizes(
    config: config_dict.ConfigDict, data: Dataset, shares_negatives: bool
) -> config_dict.ConfigDict:
    """Sets batch, epochs and negatives of a config that leaves them to the size of the log."""
    by_batch = shares_negatives and config.data.train_negatives == 0
    if config.train.batch_size != 0 and config.train.max_epochs != 0 and not by_batch:
        return config
    config = config_dict.ConfigDict(config.to_dict())
    train, examples = config.train, len(data.splits.train)
    train.batch_size = train.batch_size or batch_for(examples)
    train.max_epochs = train.max_epochs or epochs_for(examples)
    if by_batch:
        config.data.train_negatives = negatives_for(train.batch_size)
    _LOG.info(
        "batches of %d with %d negatives a target, at most %.1f epochs, for %d training examples",
        train.batch_size,
        config.data.train_negatives,
        train.max_epochs,
        examples,
    )
    return config


class RecommendationExperiment(Experiment):
    """Evaluates and recommends with what has an `evaluator`, trained or fitted.

    Attributes:
      evaluator: ranks items with (params, tables): `sampled`, `full` and `top_k`.
    """

    tasks = ("recommendation",)
    needs_examples = False
    data: Dataset
    evaluator: Any
    # Describes what of config.data is a batch's.
    batch_settings: type[Settings] = BatchSettings

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        return {
            **super().sections(config),
            **sections_of_data(config, cls.batch_settings),
            "eval": Section((EvaluationSettings, ProtocolSettings)),
        }

    def evaluate(self, params: Any, tables: Any, split: str, protocol: str) -> metrics.Sums:
        if protocol.startswith(_SEARCH):
            return self._evaluate_searches(params, tables, split, protocol)
        self.columns("recommendation", protocol)
        if protocol == "full":
            return self.full(params, tables, split, KEPT_ITEMS if split == "test" else 0)
        return self.evaluator.sampled(params, tables, self.data.sampled(split, protocol))

    def full(self, params: Any, tables: Any, split: str, keep: int) -> metrics.Sums:
        """Ranks the whole catalogue for a split, and keeps the best items of every ranking.

        Args:
          keep: how many; none where a ranking would have to be made for it.
        """
        return self.evaluator.full(params, tables, self.data.full(split), keep)

    def check_data(self) -> None:
        """Makes what a run reads: candidate lists, which are kept, and a batch of each training.

        Raises:
          UserError: the data does not have what they need.
        """
        self.data.split("test")
        self.data.possible("test", self.config.eval.protocols)

    def columns(self, task: str, protocol: str) -> tuple[str, ...]:
        """Names what `evaluate` measures for a protocol of a task: here the protocol itself.

        Raises:
          UserError: another task than recommendation, or no such protocol.
        """
        if task == "search" and self.answers_searches:
            return search_evaluation.columns(protocol)
        if task != "recommendation":
            raise UserError(
                f"expected task recommendation of a run of {self.config.method}, found {task!r}; "
                "gensar and rankers that were trained on searches answer them"
            )
        if protocol not in PROTOCOLS:
            raise UserError(
                f"expected protocols of {', '.join(PROTOCOLS)}, found {protocol!r}; pass these"
            )
        return (protocol,)

    def details(self, split: str, protocol: str) -> dict[str, Any]:
        """Returns further arguments of `results.save` for a row."""
        if protocol.startswith(_SEARCH):
            searches = SearchEvaluation(self.data, split)
            users, counted = searches.examples.user, searches.counted(protocol)
            more, rankings = {"task": "search"}, searches.rankings(protocol)
            return results.counting(users, counted, more, self.selection, rankings)
        users, counted = self.data.split(split).user, self.data.counted(split, protocol)
        return results.counting(users, counted, {}, self.selection)

    @property
    def answers_searches(self) -> bool:
        """Tells whether the ranker was trained on searches and scores them."""
        return hasattr(self.ranker, "score_query") and "search" in self.ranker.tasks

    def _evaluate_searches(
        self, params: Any, tables: Any, split: str, protocol: str
    ) -> metrics.Sums:
        self.columns("search", protocol.removeprefix(_SEARCH))
        if self.partition is not None:
            raise UserError(
                "expected one device to evaluate a ranker's searches, found a mesh; evaluate where "
                "there is one"
            )
        searches, size = SearchEvaluation(self.data, split), self.config.eval.full_batch_size
        examples, shape = searches.examples, self.data.shape(1)

        def scores_of(rows: np.ndarray) -> np.ndarray:
            # One shape: the last batch is filled up with its first row.
            filled = np.resize(rows, size) if len(rows) < size else rows
            none = np.zeros((size, 1), np.int32)
            batch = self.data.adapt(batches.assemble(self.data.log, examples, filled, shape, none))
            batch["query"] = batches.current_queries(self.data.log, examples, filled, shape.words)
            return self.evaluator.scores(params, tables, batch)[: len(rows)]

        return searches.measure(protocol, self.config.eval.metrics, scores_of, size)

    @property
    def selection(self) -> str:
        """Names the metric that decides on validation; of what is fitted at once nothing does."""
        return self.config.eval.selection

    def predict(
        self,
        params: Any,
        tables: Any,
        users: Sequence[str] | None,
        top_k: int,
        query: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yields user, rank, item and score (a logit) for each user, best first.

        Items that a user has touched are left out.

        Raises:
          UserError: an unknown user, a query, or more items than there are.
        """
        if query is not None or users is None:
            raise UserError(
                f"expected --users and no --query, which only gensar answers, for a run of "
                f"{self.config.method}; pass another --workdir"
            )
        data, log = self.data, self.data.log
        examples = data.whole_histories(users)
        user = examples.user
        size = self.config.eval.full_batch_size
        if self.partition is None:  # few users are not filled up to a whole batch
            size = next((few for few in (1, 8) if len(user) <= few), size)
        no_candidates = np.zeros((len(user), 1), np.int32)
        index = TouchedItems(log)
        touched = [index.of_user(int(number)) for number in user]
        ranked_batch = self._whole_top if self.partition is None else self._cut_top
        for start, batch in enumerate(
            batches.evaluation_batches(log, examples, no_candidates, data.shape(1), size)
        ):
            part = slice(start * size, (start + 1) * size)
            of_users = ranked_batch(params, tables, data.adapt(batch), touched[part], top_k)
            for example, (items, scores) in enumerate(of_users, start=start * size):
                ranked = zip(items.tolist(), scores.tolist(), strict=True)
                for rank, (item, score) in enumerate(ranked, start=1):
                    if np.isfinite(score):  # a user who has touched nearly everything gets fewer
                        yield {
                            "user": users[example],
                            "rank": rank,
                            "item": str(log.item_ids[item]),
                            "score": round(score, 6),
                        }

    def _whole_top(
        self, params: Any, tables: Any, batch: Any, touched: Sequence[np.ndarray], k: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the k best items and their scores for each user, on one device.

        What is compiled depends on the batch's size alone.
        """
        check_top_k(k, self.data.log.num_items)
        every = self.evaluator.scores(params, tables, batch)
        for scores, seen in zip(every, touched, strict=False):  # padding rows have no user
            items = best_items(scores, seen, None, k)
            yield items, scores[items]

    def _cut_top(
        self, params: Any, tables: Any, batch: Any, touched: Sequence[np.ndarray], k: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields what `_whole_top` does, where tables are cut over devices."""
        width = max((len(items) for items in touched), default=0) or 1
        seen = np.zeros((len(batch["user"]), width), np.int32)
        for row, items in enumerate(touched):
            seen[row, : len(items)] = items
        items, scores = self.evaluator.top_k(params, tables, batch, seen, k)
        yield from zip(items[: len(touched)], scores[: len(touched)], strict=True)

    def test_protocols(
        self,
        workdir: Workdir,
        stage: str,
        step: int,
        params: Any,
        tables: Any,
        more: dict[str, Any] | None = None,
    ) -> None:
        """Reads the test split for a finished stage, against every protocol of `config.eval`.

        Raises:
          core.errors.Preempted, core.loop.NotFinite: as `test_once`.
        """
        protocols = self.data.possible("test", self.config.eval.protocols)
        self.test_once(workdir, stage, step, protocols, params, tables, more)


class RankerExperiment(RecommendationExperiment):
    """Trains a `Ranker` by one stage, `train`.

    Args:
      config: a resolved config (`experiments.resolve.resolve`).
      data: the data it names.

    Raises:
      UserError: a setting that does not exist or does not fit.
    """

    stages: tuple[str, ...] = ("train",)

    @classmethod
    def ranker_of(cls, config: config_dict.ConfigDict) -> Ranker:
        """Returns the model of a config."""
        raise NotImplementedError

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        return {
            **super().sections(config),
            "train": Section((ScheduleSettings, TrainConfig)),
        }

    @classmethod
    def check_settings(cls, config: config_dict.ConfigDict) -> None:
        super().check_settings(config)
        ranker, update = cls.ranker_of(config), config.train.table_update
        check_loss(config, ranker)
        if config.eval.selection not in [
            metrics.full_name(name, protocol)
            for name in config.eval.metrics
            for protocol in _SELECTING
        ]:
            raise UserError(
                f"expected config.eval.selection to be one of eval.metrics against "
                f"{' or '.join(_SELECTING)}, found {config.eval.selection!r}; for instance "
                "'ndcg@5/neg99'"
            )
        if "search" in ranker.tasks and not config.data.use_search:
            raise UserError(
                "expected a model of recommendation alone where config.data.use_search is False, "
                "found one that trains on searches too; set --config.model.search_weight=0"
            )
        if config.train.targets_per_window > 1 and not ranker.trains_on_windows:
            raise UserError(
                f"expected config.train.targets_per_window=1, found "
                f"{config.train.targets_per_window}: {config.method} encodes the history of each "
                "target by itself; set it"
            )
        if config.train.targets_per_window > 1 and config.data.get("search_filter"):
            raise UserError(
                f"expected config.train.targets_per_window=1 where searches are kept or not by the "
                f"clicks before a target, found {config.train.targets_per_window}; set it"
            )
        if config.data.item_words and update != "dense":
            raise UserError(
                f"expected config.train.table_update='dense' with config.data.item_words, found "
                f"{update!r}; set it"
            )

    def __init__(self, config: config_dict.ConfigDict, data: Dataset):
        self.check_settings(config)
        ranker = self.ranker_of(config)
        config = _with_sizes(config, data, shares_negatives(ranker))
        self.config, self.data, self.ranker = config, data, ranker
        self.partition = partition_of(config, ranker.width)
        self.item_words = data.item_words()
        self.evaluator = Evaluator(
            ranker,
            tuple(config.eval.metrics),
            num_items=data.table_sizes["num_items"],
            item_words=self.item_words,
            partition=self.partition,
        )
        self._train_config = build(TrainConfig, config.train.to_dict(), section="train")

    def check_data(self) -> None:
        super().check_data()
        self.example_batch()
        # A teacher's scores, which cost time, need nothing more.
        batches, _ = RankerExperiment.training_batches(self, self.config.seed)
        next(batches(0))

    def run(self, workdir: Workdir) -> None:
        """Trains every stage, or continues it, and reads the test split once for each."""
        stages = self.plan(workdir)
        task, config = next(stages)
        with contextlib.suppress(StopIteration):
            while True:
                task, config = stages.send(run_stage(task, config, workdir))

    def plan(self, workdir: Workdir) -> Plan:
        """Yields the stages in order, each to be trained; is sent its result, and tests that."""
        task = self.train_task()
        finished = yield task, self.loop_config(task)
        self.test_stage(workdir, "train", finished)

    def test_stage(self, workdir: Workdir, stage: str, finished: StageResult) -> None:
        state = finished.state
        more = {
            "still_improving": finished.still_improving,
            "validation": {
                "metric": self.selection,
                "value": float(finished.best_value),
                "floors": self._floors,
            },
        }
        self.test_protocols(
            workdir, stage, finished.best_step, state["params"], state["tables"], more
        )

    def train_task(self) -> RankerTask:
        """Returns the training stage."""
        return self._train_task(*self.training_batches(self.config.seed))

    def _train_task(
        self, batches: Callable[[int], Iterator[Any]], steps_per_epoch: int
    ) -> RankerTask:
        config = self.config.train
        return RankerTask(
            name="train",
            ranker=self.ranker,
            config=self._train_config,
            table_sizes=self.data.table_sizes,
            example_batch=self.example_batch(),
            batches=batches,
            steps_per_epoch=steps_per_epoch,
            batch_size=config.batch_size,
            evaluate=self.validate,
            selection=self.selection,
            seed=self.config.seed,
            item_words=self.item_words,
            max_steps=max(1, round(config.max_epochs * steps_per_epoch)),
            start=self._spectral_rows if config.start == "spectral" else None,
            partition=self.partition,
        )

    def _spectral_rows(self) -> dict[str, np.ndarray]:
        started = time.monotonic()
        rows = spectral_rows(
            self.data.training_clicks(),
            self.data.training_co_occurrence(),
            width=self.ranker.width,
            scale=self.ranker.init_scale,
            popularity_weight=getattr(self.ranker, "popularity_weight", 0.0),
            users=getattr(self.ranker, "starts_users", False),
        )
        took = time.monotonic() - started
        _LOG.info("rows of items and words from what occurs together, in %.1f s", took)
        return rows

    def training_batches(self, seed: int) -> tuple[Callable[[int], Iterator[Any]], int]:
        """Returns pre-training's endless batches from a step on, and how many an epoch has."""
        return self.data.training(
            batch_size=self.config.train.batch_size,
            negatives=self.config.data.train_negatives,
            seed=seed,
            tasks=self.ranker.tasks,
            **self.windows(),
        )

    def windows(self) -> dict[str, Any]:
        """Returns what `data.training` takes about windows."""
        return {
            "targets_per_window": self.config.train.targets_per_window,
            "row_multiple": 1 if self.partition is None else self.partition.size,
        }

    def loop_config(self, task: RankerTask) -> LoopConfig:
        """Returns how long pre-training runs and how often it looks."""
        train, steps_per_epoch = self.config.train, task.steps_per_epoch
        return self.loop(
            max_steps=max(1, round(train.max_epochs * steps_per_epoch)),
            eval_every=max(1, round(steps_per_epoch / train.evals_per_epoch)),
            learning_rate=train.learning_rate,
        )

    def loop(self, *, max_steps: int, eval_every: int, learning_rate: float) -> LoopConfig:
        """Returns the loop's settings around what differs between stages."""
        train = self.config.train
        falls = train.schedule == "cosine"  # by itself
        return LoopConfig(
            max_steps=max_steps,
            eval_every=eval_every,
            checkpoint_every=self.config.loop.checkpoint_every,
            log_every=self.config.loop.log_every,
            learning_rate=learning_rate,
            min_learning_rate=min(learning_rate, train.min_learning_rate),
            plateau_factor=1.0 if falls else train.plateau_factor,
            plateau_patience=train.plateau_patience,
            stop_patience=train.stop_patience,
        )

    def example_batch(self) -> dict[str, np.ndarray]:
        """Returns a batch of the right ranks, for shapes only."""
        protocol = self._selecting
        if protocol == "full":
            return next(self.data.full("validation"))[0]
        return next(self.data.sampled("validation", protocol))

    @functools.cached_property
    def selection(self) -> str:
        """Names the metric that decides; see `input_pipelines.dataset.Dataset.selection`."""
        return self.data.selection()

    @functools.cached_property
    def _floors(self) -> dict[str, float]:
        return floors(self.data, self.selection)

    @property
    def _selecting(self) -> str:
        return self.selection.partition("/")[2]

    def validate(self, params: Any, tables: Any) -> dict[str, float]:
        """Measures the validation users under the protocol that decides."""
        protocol = self._selecting
        means = self.evaluate(params, tables, "validation", protocol).means()
        return {metrics.full_name(name, protocol): value for name, value in means.items()}

    def scoring_tables(self, tables: Any) -> Any:
        """Returns the tables with `config.data.item_words` in the items' vectors."""
        return with_item_words(tables, self.item_words)

    def vectors(self, tables: Any, table: str) -> tuple[np.ndarray, list[str]]:
        log = self.data.log
        names = {"item": log.item_ids, "user": log.user_ids, "word": log.words}
        known = [name for name in tables if name in names]
        if table not in known:
            raise self.no_vectors(table, known)
        rows = np.asarray(self.scoring_tables(tables)[table], np.float32)
        rows = rows.reshape(-1, self.ranker.width)
        # The user table has one more row, shared by users not seen in training.
        of_rows = names[table][1:].tolist()
        return rows[1 : len(of_rows) + 1], of_rows

    def abstract_state(self, stage: str) -> Any:
        """Returns shapes, dtypes and shardings of a stage's state, to restore a checkpoint into."""
        return self._placed(self._shapes(stage))

    def _placed(self, state: Any) -> Any:
        return state if self.partition is None else self.partition.abstract(state)

    def _shapes(self, stage: str) -> Any:
        del stage
        return jax.eval_shape(self._train_task(no_batches, 1).random_state)
