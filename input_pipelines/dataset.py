"""Turns a config into batches: the prepared log, its splits and candidate lists, for any model."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
import scipy.sparse
from ml_collections import config_dict

from core import distributed, metrics
from core.errors import UserError
from core.object_store import fetched
from input_pipelines import (
    batches,
    candidates,
    co_occurrence,
    prepare,
    prepared_log,
    reading_index,
    search_task,
    segmenters,
    splits,
)
from input_pipelines.item_words import item_words
from input_pipelines.log import Log
from input_pipelines.search_filter import SearchFilter
from input_pipelines.stored_cache import StoredCache, open_cache
from input_pipelines.windows import WindowBatches

_LOG = logging.getLogger(__name__)
# Protocols of the whole catalogue: 'full' leaves out the items that the user has seen; 'catalogue',
# for searches alone, ranks them too (CRS).
WHOLE = ("full", "catalogue")
# Protocols of saved lists.
SAMPLED = (*candidates.PROTOCOLS, candidates.BM25, candidates.PUBLISHED)
_TIMES = "the times of the clicks are too few or too equal to cut at; pass leave_one_out"
# What to do where a part of a split is empty.
_WHY_NONE_TRAINS = {
    "leave_one_out": "; bring users with clicks",
    "global_time": f": {_TIMES}",
    "by_user": ": there are too few users; bring more, or pass leave_one_out",
    "published": ": the source's training part is empty; pass leave_one_out",
}
_WHY_NONE_IS_HELD_OUT = _WHY_NONE_TRAINS | {
    "leave_one_out": ": no user has enough clicks; bring users with at least 3",
    "published": ": that part of the source is empty; pass leave_one_out",
}
# The share of validation examples that a sampled protocol must rank to select a run.
_ENOUGH = 0.5
Batch = dict[str, np.ndarray]
# Keys of config.data that say how raw files are read.
_READING = ("segmenter", "columns", "time_unit")


def _part(batch: Batch, process: int, processes: int) -> Batch:
    """Returns the rows of a whole batch that one of several processes holds."""
    uneven = [name for name, rows in batch.items() if len(rows) % processes]
    if uneven:
        raise UserError(
            f"expected rows of {uneven[0]} that divide among {processes} processes, found "
            f"{len(batch[uneven[0]])}; change the batch size or the number of processes"
        )
    return {name: np.split(rows, processes)[process] for name, rows in batch.items()}


def search_filter(config: config_dict.ConfigDict, workdir: str) -> SearchFilter | None:
    """Opens the filter of a run of studies.ablation.figure2; no other run has one."""
    chosen = config.data.get("search_filter")
    if not chosen:
        return None
    return SearchFilter(os.path.normpath(os.path.join(workdir, chosen.vectors)), chosen.threshold)


class Dataset:
    """Holds everything a task reads: `Dataset(resolve(config))` prepares it on first use.

    Args:
      workdir: the run's folder, from which `config.data.search_filter` leads to its vectors.

    Attributes:
      log, splits: what was read, and which clicks are targets of which split.
      trained_users: bool [U+1], who has a training example.
      label: the data set's name for tables and files; says "sample data" where it is.
    """

    # None where the cache directory is of this machine.
    _shared: StoredCache | None = None

    def __init__(self, config: config_dict.ConfigDict, workdir: str = ""):
        self._config = config
        with distributed.first_alone():
            self._open(config)
        with self._once():
            self.splits = reading_index.split_of(
                self.log,
                config.data.split,
                config.data.max_validation,
                self.directory,
                self.cache_dir,
            )
        self._check_training_clicks()
        splits.warn_of_told_targets(self.log, self.splits)
        self.label = f"{self.log.name} (sample data)" if self.log.is_sample else self.log.name
        # A user's own row is trained only where the user has a training example.
        self.trained_users = np.zeros(self.log.num_users + 1, bool)
        self.trained_users[self.splits.train.user] = True
        self._filter = search_filter(config, workdir)
        self._seen: dict[str, np.ndarray] = {}
        self._lists: dict[tuple[str, str, str], np.ndarray] = {}
        self._said: set[str] = set()

    def _say(self, remark: str, level: int = logging.WARNING) -> None:
        """Logs a remark, but none twice."""
        if remark not in self._said:
            _LOG.log(level, remark)
            self._said.add(remark)

    def _check_training_clicks(self) -> None:
        """Raises UserError where no click trains: every score would be a guess."""
        if not len(self.splits.training_rows):
            raise UserError(
                f"expected clicks of {self.log.name} that train under the split "
                f"{self.splits.name}, found none of {len(self.log.rec_items)}"
                f"{_WHY_NONE_TRAINS[self.splits.name]}"
            )

    def _open(self, config: config_dict.ConfigDict) -> None:
        self.cache_dir, self._shared = open_cache(config.cache_dir)
        cache = self.cache_dir
        data_dir = fetched(config.data_dir, "config.data_dir")
        if not data_dir:
            from input_pipelines.sample import generator

            data_dir = generator.ensure_sample(
                cache,
                num_users=config.on_sample.users,
                seed=config.on_sample.seed,
                shuffle_searches=config.on_sample.shuffle_searches,
                hops=config.on_sample.hops,
                refinements=config.on_sample.get("refinements", False),
            )
            _LOG.info("no data_dir given: using sample data (made up, Qilin's format) %s", data_dir)
        self.raw_dir = data_dir
        self.log: Log
        self.log, self.directory = prepare.prepare_log(
            config.dataset,
            data_dir,
            cache,
            {name: config.data[name] for name in _READING if name in config.data},
            shared=self._shared,
        )

    def share(self) -> None:
        """Sends what was made from the log to a cache directory in an object store; else nothing.

        A store that cannot be written costs a warning.
        """
        if self._shared is not None and jax.process_index() == 0:
            self._shared.send_if_possible(self.directory)

    def beside(self, name: str) -> str:
        """Returns the path of a file made from the prepared log (`place_beside`)."""
        return prepared_log.place_beside(name, self.directory, self.cache_dir)

    @functools.cached_property
    def training_split(self) -> str:
        """Names the split, with a hash over the clicks that train: what a model may have seen."""
        rows = np.ascontiguousarray(self.splits.training_rows, np.int64)
        return f"{self.splits.name}-{hashlib.sha256(rows.tobytes()).hexdigest()[:12]}"

    def check_training_split(self, recorded: object, what: str) -> None:
        """Refuses a file made from another split's training clicks, which may be held out here.

        Args:
          recorded: the `training_split` that the file records.
          what: names the file in the message, such as 'item vectors in FILE'.

        Raises:
          UserError: the file records another split, or none.
        """
        if recorded != self.training_split:
            told = f"those of {recorded:.60}" if isinstance(recorded, str) else "no record of them"
            raise UserError(
                f"expected {what} of the training clicks of {self.training_split}, found {told}; "
                f"make them again with config.data.split={self.splits.name!r}"
            )

    @property
    def table_sizes(self) -> dict[str, int]:
        """Counts the users, items and words of the log, without padding."""
        return {
            "num_users": self.log.num_users,
            "num_items": self.log.num_items,
            "num_words": self.log.num_words,
        }

    @functools.cached_property
    def _known_words(self) -> set[str]:
        return set(self.log.words.tolist())

    def whole_histories(self, users: Sequence[str]) -> splits.Examples:
        """Returns one example a user with all that the user has done, by ids as in the raw data.

        Raises:
          UserError: an id that the data does not hold.
        """
        numbers = {name: i for i, name in enumerate(self.log.user_ids.tolist()) if i}
        unknown = [user for user in users if user not in numbers]
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise UserError(
                f"expected user ids of {self.label}, found {unknown[0]!r}{more}, which it "
                "does not hold; correct the users"
            )
        return self._histories_of(np.array([numbers[name] for name in users], np.int32))

    def no_history(self) -> splits.Examples:
        """Returns one example of someone who has done nothing: user 0 has no events."""
        return self._histories_of(np.zeros(1, np.int32))

    def _histories_of(self, user: np.ndarray) -> splits.Examples:
        return splits.Examples(
            user=user,
            target_row=np.zeros(len(user), np.int64),
            rec_end=np.asarray(self.log.rec_offsets)[user + 1],
            search_end=np.asarray(self.log.search_offsets)[user + 1],
        )

    @property
    def origin(self) -> dict[str, str]:
        """Names the data in a row of results.json: its label and the hash of its log."""
        return {"data": self.label, "data_hash": self.log.hash}

    def query_text(self, query: str) -> str:
        """Writes what a user types as the reader of the log writes its queries; '' without words.

        Readers that split queries split this one too. Other readers take a file's words as they
        are: then words that the log has stay as typed, and the segmenter splits the rest.
        """
        return segmenters.join(self.query_words(query))

    def query_words(self, query: str) -> list[str]:
        """Splits what a user types into words, which the log need not have, as `query_text`."""
        splits = "segmenter" in prepare.READERS[self._config.dataset].settings
        split = segmenters.segmenter(self._config.data.segmenter)
        return segmenters.typed_words(query, split, None if splits else self._known_words)

    def item_words(self) -> np.ndarray | None:
        """Returns the words [V+1, n] that are part of the items' vectors; None where n is 0.

        Raises:
          UserError: `config.data.item_words` is negative.
        """
        most = self._config.data.get("item_words", 0)
        if most < 0:
            raise UserError(
                f"expected config.data.item_words of 0 or more, found {most}; 0 leaves items "
                "without words"
            )
        return item_words(self.log, self.splits, most) if most else None

    def shape(self, num_candidates: int) -> batches.BatchShape:
        """Returns the shape of batches with this many candidates a row."""
        data = self._config.data
        return batches.BatchShape(
            rec_length=data.rec_length,
            search_length=data.search_length,
            words=data.words,
            clicks=data.clicks,
            candidates=num_candidates,
        )

    def training(
        self,
        *,
        batch_size: int,
        negatives: int,
        seed: int,
        tasks: tuple[str, ...] = ("recommendation",),
        searches: search_task.SearchExamples | None = None,
        processes: tuple[int, int] | None = None,
        targets_per_window: int = 1,
        row_multiple: int = 1,
    ) -> tuple[Callable[[int], Iterator[Batch]], int]:
        """Returns (start_step -> endless batches, steps per epoch) of the training split.

        Each of several processes gets its own part of every batch.

        Args:
          batch_size: over all processes.
          tasks: with 'search' among them, every batch ends in search examples; ('search',) has
            these alone.
          searches: the search examples; None takes the log's training searches.
          processes: which this is, and how many there are; None asks JAX.
          targets_per_window: more than 1 gives batches of windows (`input_pipelines.windows`).
          row_multiple: what a batch's rows of windows must be divisible by, such as a mesh.

        Raises:
          UserError: there is nothing to train on.
        """
        if not len(self.splits.train):
            raise UserError(
                f"expected training examples in {self.label}, found none: no click that trains has "
                "an event of its user before it; bring users with more events, at different times"
            )
        here = processes or (jax.process_index(), jax.process_count())
        touched = self._touched()
        if targets_per_window > 1:
            with self._once():
                windows = WindowBatches(
                    self.log,
                    self.splits.train,
                    self.shape(1 + negatives),
                    batch_size=batch_size,
                    seed=seed,
                    negatives=negatives,
                    targets_per_window=targets_per_window,
                    process_index=here[0],
                    process_count=here[1],
                    row_multiple=row_multiple,
                    touched=touched,
                    keep=reading_index.keeper(self.log, self.directory, self.cache_dir),
                )
            for remark in windows.remarks:
                self._say(remark)
            self._say(windows.described, logging.INFO)
            return lambda start: map(self.adapt, windows.stream(start)), windows.steps_per_epoch
        # Search examples end the whole batch and not each process's part: it is made, then cut.
        whole, alone = "search" in tasks, tasks == ("search",)
        if whole and searches is None:
            searches = self._training_searches(alone)
        assert searches is not None or not alone
        source = batches.TrainBatches(
            self.log,
            searches if alone and searches is not None else self.splits.train,
            self.shape(1 + negatives),
            batch_size=batch_size,
            seed=seed,
            negatives=negatives,
            process_index=0 if whole else here[0],
            process_count=1 if whole else here[1],
            searches=searches if whole and not alone else None,
            touched=touched,
        )

        for remark in source.remarks:
            self._say(remark)

        def stream(start: int) -> Iterator[Batch]:
            unadapted = source.stream(start)
            return map(self.adapt, (_part(b, *here) for b in unadapted) if whole else unadapted)

        return stream, source.steps_per_epoch

    def _once(self) -> contextlib.AbstractContextManager[None]:
        """Lets process 0 make first what is saved of a large log."""
        large = len(self.log.rec_items) >= reading_index.LEAST
        return distributed.first_alone() if large else contextlib.nullcontext()

    def _touched(self) -> candidates.TouchedItems:
        with self._once():
            return reading_index.touched_of(self.log, self.directory, self.cache_dir)

    def _training_searches(self, alone: bool) -> search_task.SearchExamples:
        searches = search_task.training_searches(self.log, self.splits)
        if not len(searches):
            what = "train another method" if alone else "set --config.model.search_weight=0"
            raise UserError(
                f"expected training searches with words and clicks in {self.label}, found none; "
                f"{what}"
            )
        return searches

    def training_clicks(self) -> scipy.sparse.csr_array:
        """Counts how often each user clicked each item in training, [U+1, V+1]."""
        log, rows = self.log, self.splits.training_rows
        users = np.repeat(np.arange(log.num_users + 1), np.diff(log.rec_offsets))[rows]
        items = np.asarray(log.rec_items)[rows]
        shape = (log.num_users + 1, log.num_items + 1)
        return scipy.sparse.csr_array((np.ones(len(rows)), (users, items)), shape=shape)

    def training_co_occurrence(self) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
        """Returns the items [S, V+1] and words [S, W+1] of each training search; of no search
        where a model is to be blind to them.
        """
        items, words = co_occurrence.of_searches(self.log, self.splits)
        if not self._config.data.use_search:
            return items[:0], words[:0]
        return items, words

    def adapt(self, batch: Batch) -> Batch:
        """Returns what the model sees: one row for users not trained on; no searches if blind."""
        user = np.where(self.trained_users[batch["user"]], batch["user"], self.log.num_users + 1)
        batch = batch | {"user": user.astype(np.int32)}
        if self._filter is not None:
            batch = self._filter(batch)
        if not self._config.data.use_search:
            batch["query_words"] = np.zeros_like(batch["query_words"])
            batch["clicked_items"] = np.zeros_like(batch["clicked_items"])
            if "rec_order" in batch:
                # A gap in the order would tell of a search.
                place = np.arange(batch["rec_items"].shape[1], dtype=np.int32)
                batch["rec_order"] = place * (batch["rec_items"] != 0)
                batch["search_order"] = np.zeros_like(batch["search_order"])
        return batch

    def split(self, name: str) -> splits.Examples:
        """Returns the clicks of validation or test. Raises UserError where there are none."""
        if name not in ("validation", "test"):
            raise UserError(f"expected split validation or test, found {name!r}; pass one of them")
        examples = getattr(self.splits, name)
        if not len(examples):
            raise UserError(
                f"expected {name} examples in {self.label}, found none under the split "
                f"{self.splits.name}{_WHY_NONE_IS_HELD_OUT[self.splits.name]}"
            )
        return examples

    def examples(self, task: str, split: str) -> splits.Examples:
        """Returns what is evaluated: clicks for 'recommendation', clicks of searches for 'search'.

        Raises:
          UserError: no such task or split, or the split has no example of the task.
        """
        if task == "recommendation":
            return self.split(split)
        if task != "search":
            raise UserError(
                f"expected task recommendation or search, found {task!r}; pass one of them"
            )
        self.split(split)
        searches = search_task.held_out_searches(self.log, self.splits, split)
        if not len(searches):
            raise UserError(
                f"expected {split} searches with words and clicks in {self.label}, found none; "
                "evaluate recommendation"
            )
        return searches

    def chosen(self, task: str, split: str, most: int) -> tuple[splits.Examples, np.ndarray]:
        """Returns `most` random ones of `examples` (0: all), and their places among these.

        The choice depends on `config.data.candidates_seed` alone.
        """
        every = self.examples(task, split)
        places = np.arange(len(every))
        if 0 < most < len(every):
            rng = np.random.default_rng(self._config.data.candidates_seed)
            places = np.sort(rng.choice(len(every), most, replace=False))
        return every.take(places), places

    def candidate_lists(
        self, split: str, protocol: str, task: str = "recommendation"
    ) -> np.ndarray:
        """Returns the saved candidate lists int32 [E, 100] of `examples`, with targets first."""
        key = (split, protocol, task)
        if key not in self._lists:
            with distributed.first_alone():
                self._lists[key] = candidates.evaluation_candidates(
                    self.log,
                    self.splits,
                    split,
                    protocol,
                    self._config.data.candidates_seed,
                    self.directory,
                    cache_dir=self.cache_dir,
                    task=task,
                    segmenter=self._config.data.segmenter,
                )
            self._say_who_is_left_out(key)
            self.share()
        return self._lists[key]

    def _say_who_is_left_out(self, key: tuple[str, str, str]) -> None:
        split, protocol, task = key
        examples = self.examples(task, split)
        lacking = ~candidates.ranked(self._lists[key])
        if lacking.any():
            count = self._lists[key].shape[1] - 1
            _LOG.warning(
                "%s leaves out %d of %d %s examples of %s: %s",
                protocol,
                lacking.sum(),
                len(lacking),
                split,
                task,
                candidates.who_lack(self.log, examples.user[lacking], count),
            )

    def counted(self, split: str, protocol: str, task: str = "recommendation") -> np.ndarray:
        """Tells which of `examples` a protocol ranks, bool [E].

        A user who has touched nearly all items has too few negatives for a sampled protocol.
        """
        if protocol not in SAMPLED:
            return np.ones(len(self.examples(task, split)), bool)
        return candidates.ranked(self.candidate_lists(split, protocol, task))

    def possible(
        self, split: str, protocols: Sequence[str], task: str = "recommendation"
    ) -> tuple[str, ...]:
        """Picks the protocols that rank at least one example of a split.

        Raises:
          UserError: none of the protocols does.
        """
        ranks = [p for p in protocols if self.counted(split, p, task).any()]
        if protocols and not ranks:
            self.check_ranked(split, protocols[0], task)
        return tuple(ranks)

    def selection(self, task: str = "recommendation") -> str:
        """Returns the metric that selects a run: `config.eval.selection`, or one on all items.

        The metric is taken on the full catalogue where the sampled protocol leaves out more than
        half of the validation examples. This is logged, and result rows say what they were selected
        on.
        """
        wanted = self._config.eval.selection
        name, *parts = wanted.split("/")
        sampled = next((part for part in parts if part in SAMPLED), None)
        if sampled is None:
            return wanted
        share = self.counted("validation", sampled, task).mean()
        if share >= _ENOUGH:
            return wanted
        column = "search/full" if task == "search" else "full"
        self._say(
            f"selecting on {name}/{column}: {sampled} can rank {share:.0%} of the validation "
            "examples"
        )
        return metrics.full_name(name, column)

    def check_ranked(self, split: str, protocol: str, task: str = "recommendation") -> None:
        """Raises UserError where a sampled protocol leaves out every example of a split."""
        if not self.counted(split, protocol, task).any():
            count = self.candidate_lists(split, protocol, task).shape[1] - 1
            raise UserError(
                f"expected users of {self.label} with {count} items that they have not touched for "
                f"{protocol}, found none in {split} ({self.log.num_items} items); rank the whole "
                "catalogue: protocol full"
            )

    def sampled(self, split: str, protocol: str) -> Iterator[Batch]:
        """Yields batches of a split's `counted` examples against the saved lists of `protocol`.

        Raises:
          UserError: the protocol leaves out all of them.
        """
        every = self.split(split)
        self.check_ranked(split, protocol)
        counted = np.flatnonzero(self.counted(split, protocol))
        examples = every.take(counted)
        lists = self.candidate_lists(split, protocol)[counted]
        unadapted = batches.evaluation_batches(
            self.log,
            examples,
            lists,
            self.shape(lists.shape[1]),
            self._config.eval.batch_size,
        )
        return map(self.adapt, unadapted)

    def full(self, split: str) -> Iterator[tuple[Batch, np.ndarray]]:
        """Yields batches with the target as only candidate, and the items seen before it [B, S]."""
        examples = self.split(split)
        size = self._config.eval.full_batch_size
        if split not in self._seen:
            self._seen[split] = candidates.seen_items(self.log, examples)
        seen = self._seen[split]
        targets = self.log.rec_items[examples.target_row][:, None].astype(np.int32)
        unadapted = batches.evaluation_batches(self.log, examples, targets, self.shape(1), size)
        for number, batch in enumerate(unadapted):
            part = seen[number * size : (number + 1) * size]
            part = np.pad(part, ((0, size - len(part)), (0, 0)))
            yield self.adapt(batch), part
