"""Makes batches, fixed-shape arrays of what a model sees of examples, from one integer each.

Training examples are visited in a random order that is a pure function of (seed, position), so
that a batch can be made from its step number alone: resuming is exact, and the order does not
depend on how many hosts read. TensorFlow is imported only by `TrainBatches.stream`.
"""

from __future__ import annotations

import atexit
import dataclasses
import importlib.util
import math
from collections.abc import Iterator

import numpy as np

from core.errors import UserError
from core.prefetch import ahead
from input_pipelines import random_streams
from input_pipelines.candidates import TouchedItems, draw_negatives, who_lack
from input_pipelines.log import Log
from input_pipelines.search_task import SearchExamples, targets
from input_pipelines.splits import Examples

Batch = dict[str, np.ndarray]

# name -> (axes, dtype, meaning). B batch, Lr/Ls history lengths, W words, C clicks, N candidates.
# The orders say where an event lies in the merged history of both kinds.
BATCH_FIELDS: dict[str, tuple[str, type, str]] = {
    "user": ("B", np.int32, "user id"),
    "rec_items": ("B Lr", np.int32, "clicked items, oldest kept first, right-padded"),
    "query_words": ("B Ls W", np.int32, "word ids of each search, oldest kept first"),
    "clicked_items": ("B Ls C", np.int32, "items clicked in each search"),
    "rec_order": ("B Lr", np.int32, "place of each click among all kept events, 0 the oldest"),
    "search_order": ("B Ls", np.int32, "place of each search likewise; equal times: clicks first"),
    "candidates": ("B N", np.int32, "items to score; the target is column 0"),
    "labels": ("B N", np.float32, "1 for the target, 0 for negatives"),
    "mask": ("B", np.float32, "0 for padding rows, which count nothing"),
}
# Of batches whose last S rows are search examples; the rows before recommend.
SEARCH_FIELDS: dict[str, tuple[str, type, str]] = {
    "query": ("S W", np.int32, "word ids of the current search, of the last S rows"),
}
_FIELD_TABLES = {
    "rec_items": "item",
    "clicked_items": "item",
    "candidates": "item",
    "query_words": "word",
    "query": "word",
    "user": "user",
}
# Batches made ahead of the one in use, and the threads that make them.
_AHEAD, _THREADS = 4, 2
# Added to the seed for search examples, far from other seeds.
_SEARCH_SEED = 2_000_003
# The share of training examples that need not have as many negatives as the others.
_MAY_LACK = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchShape:
    """Holds the sizes Lr, Ls, W, C and N of batches, and how many of the last rows are searches."""

    rec_length: int
    search_length: int
    words: int
    clicks: int
    candidates: int
    search_rows: int = 0

    def fields(self) -> dict[str, tuple[str, type, str]]:
        """Returns the fields of a batch: name -> (axes, dtype, meaning)."""
        return BATCH_FIELDS | (SEARCH_FIELDS if self.search_rows else {})

    def sizes(self, batch_size: int) -> dict[str, int]:
        """Returns the length of each axis by its letter."""
        return {
            "B": batch_size,
            "S": self.search_rows,
            "Lr": self.rec_length,
            "Ls": self.search_length,
            "W": self.words,
            "C": self.clicks,
            "N": self.candidates,
        }


def validate_batch(batch: Batch, shape: BatchShape, batch_size: int, log: Log) -> None:
    """Checks the names, shapes, dtypes and id ranges of a batch.

    Raises:
      UserError: the batch breaks the contract; names the field.
    """
    validate_fields(batch, shape.fields(), shape.sizes(batch_size), log)
    events = shape.rec_length + shape.search_length
    for name in ("rec_order", "search_order"):
        value = batch[name]
        if np.any((value < 0) | (value >= events)):
            raise UserError(
                f"expected places of batch field {name} from 0 to {events - 1}, found "
                f"{int(value.min())} to {int(value.max())}; use `assemble`"
            )


def validate_fields(
    batch: Batch, fields: dict[str, tuple[str, type, str]], sizes: dict[str, int], log: Log
) -> None:
    """Checks a batch against a table of fields: names, shapes, dtypes and id ranges.

    Args:
      fields: as `BATCH_FIELDS`.
      sizes: the length of each axis by its letter.

    Raises:
      UserError: the batch breaks the contract; names the field.
    """
    if set(batch) != set(fields):
        odd = sorted(set(batch) ^ set(fields))
        raise UserError(
            f"expected the batch fields {', '.join(fields)}, found a difference in "
            f"{', '.join(odd)}; use `assemble`"
        )
    # One more user row: the shared row of users not seen in training.
    limits = {"user": log.num_users + 1, "item": log.num_items, "word": log.num_words}
    for name, (axes, dtype, _) in fields.items():
        value = batch[name]
        expected = tuple(sizes[axis] for axis in axes.split())
        if value.shape != expected or value.dtype != dtype:
            raise UserError(
                f"expected batch field {name} of shape {expected} and dtype {np.dtype(dtype)}, "
                f"found {value.shape} and {value.dtype}; use `assemble`"
            )
        if name in _FIELD_TABLES and value.size:
            limit = limits[_FIELD_TABLES[name]]
            if value.min() < 0 or value.max() > limit:
                worst = int(value.min()) if value.min() < 0 else int(value.max())
                raise UserError(
                    f"expected ids of batch field {name} from 0 to {limit}, found {worst}; prepare "
                    "the data again"
                )


def _last(starts: np.ndarray, ends: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns row numbers [n, length] of each range's last `length` rows, and which are real."""
    first = np.maximum(starts, ends - length)
    rows = first[:, None] + np.arange(length)
    real = rows < ends[:, None]
    # Padding repeats the last row: another would be looked up in the shard of another user.
    return np.where(real, rows, np.maximum(ends - 1, 0)[:, None]), real


def first_of_ragged(
    offsets: np.ndarray, values: np.ndarray, rows: np.ndarray, real: np.ndarray, width: int
) -> np.ndarray:
    """Returns the first `width` values of ragged `rows` [n, L], int32 [n, L, width], 0 padded."""
    if not len(values):
        return np.zeros((*rows.shape, width), np.int32)
    if len(offsets) <= 1:
        return np.zeros((*rows.shape, width), np.int32)
    places = offsets[rows][..., None] + np.arange(width)
    there = places < np.where(real, offsets[rows + 1], 0)[..., None]
    gathered = values[np.minimum(places, len(values) - 1, out=places)]
    return np.where(there, gathered, 0).astype(np.int32, copy=False)


def _merged_order(
    rec_times: np.ndarray, rec_real: np.ndarray, search_times: np.ndarray, search_real: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns places of clicks [n, Lr] and searches [n, Ls] in time order, int32, 0 for padding.

    Both are in time order already: an event's place is its place in its kind plus how many of the
    other kind come before it.
    """
    (n, clicks), searches = rec_times.shape, search_times.shape[1]
    last = np.iinfo(np.int64).max
    search_times = np.where(search_real, search_times, last)
    earlier = search_times[:, None, :] < np.where(rec_real, rec_times, last)[:, :, None]
    before = np.count_nonzero(earlier, axis=2)
    rec = (np.arange(clicks) + before) * rec_real
    # A click precedes search j where at most j searches precede the click; padding precedes none.
    before = np.where(rec_real, before, searches) + np.arange(n)[:, None] * (searches + 1)
    counts = np.bincount(before.ravel(), minlength=n * (searches + 1)).reshape(n, searches + 1)
    search = (np.arange(searches) + np.cumsum(counts, 1)[:, :searches]) * search_real
    return rec.astype(np.int32), search.astype(np.int32)


def assemble(
    log: Log,
    examples: Examples,
    indices: np.ndarray,
    shape: BatchShape,
    candidates: np.ndarray,
    mask: np.ndarray | None = None,
) -> Batch:
    """Returns the batch of examples `indices` [B] with their candidates [B, N].

    The last Lr clicks and Ls searches are kept, the first W words of a query, the first C clicks
    of a search. An empty history, a query without words, a session without clicks are all legal.
    """
    chosen = examples.take(indices)
    rec_rows, rec_real = _last(log.rec_offsets[chosen.user], chosen.rec_end, shape.rec_length)
    search_rows, search_real = _last(
        log.search_offsets[chosen.user], chosen.search_end, shape.search_length
    )
    # A log without any event of a kind has none to look up.
    nothing = np.zeros(1, np.int64)
    search_times = log.search_times if len(log.search_times) else nothing
    rec_times, rec_items = (
        (log.rec_times, log.rec_items) if len(log.rec_items) else (nothing, nothing)
    )
    rec_order, search_order = _merged_order(
        rec_times[rec_rows], rec_real, search_times[search_rows], search_real
    )
    labels = np.zeros(candidates.shape, np.float32)
    labels[:, 0] = 1.0
    return {
        "user": chosen.user.astype(np.int32),
        "rec_items": np.where(rec_real, rec_items[rec_rows], 0).astype(np.int32),
        "query_words": first_of_ragged(
            log.word_offsets, log.word_ids, search_rows, search_real, shape.words
        ),
        "clicked_items": first_of_ragged(
            log.click_offsets, log.click_items, search_rows, search_real, shape.clicks
        ),
        "rec_order": rec_order,
        "search_order": search_order,
        "candidates": candidates.astype(np.int32),
        "labels": labels,
        "mask": np.ones(len(indices), np.float32) if mask is None else mask.astype(np.float32),
    }


def current_queries(
    log: Log, examples: SearchExamples, indices: np.ndarray, words: int
) -> np.ndarray:
    """Returns the first `words` words of the searches to be answered, int32 [B, W], 0 padded."""
    rows = examples.target_row[indices][:, None]
    real = np.ones_like(rows, bool)
    return first_of_ragged(log.word_offsets, log.word_ids, rows, real, words)[:, 0]


@dataclasses.dataclass(frozen=True)
class _Part:
    """Holds the examples of one task, and which of them a batch has.

    Attributes:
      batch_size: over all hosts; `share` rows from `offset` on are this host's.
      seed: of the order and the negatives.
    """

    examples: Examples
    batch_size: int
    offset: int
    share: int
    seed: int


class TrainBatches:
    """Makes endless training batches, each a pure function of its step.

    Global position p is example `permutation(p mod n)` of epoch `p // n`; step s holds positions
    s * batch_size onwards. Batches run across epoch borders: nothing is dropped or padded.

    Where the catalogue leaves fewer negatives than asked for to more than a tenth of the examples,
    all get as many as nine in ten can have. An example whose user has touched so much that even
    fewer are left does not train. `remarks` tells of both.

    Args:
      examples: clicks, or searches, with which every row of a batch has a `query`.
      batch_size: over all hosts; this host gets its contiguous share.
      negatives: sampled a target; redrawn each epoch.
      process_index, process_count: this host among all.
      searches: examples of the search task, appended to every batch of clicks; as many a step as
        make an epoch of theirs as long as one of `examples`.
      touched: what users touched, where it is known already.

    Raises:
      UserError: the batch does not divide among the hosts, or no item is left as a negative.
    """

    def __init__(
        self,
        log: Log,
        examples: Examples,
        shape: BatchShape,
        *,
        batch_size: int,
        seed: int,
        negatives: int,
        process_index: int = 0,
        process_count: int = 1,
        searches: SearchExamples | None = None,
        touched: TouchedItems | None = None,
    ):
        if batch_size % process_count:
            raise UserError(
                f"expected a batch size divisible by {process_count} hosts, found {batch_size}"
            )
        self._log = log
        self._touched = TouchedItems(log) if touched is None else touched
        self.remarks: list[str] = []
        negatives, examples, searches = self._with_negatives(negatives, examples, searches)
        self._negatives = negatives
        shape = dataclasses.replace(shape, candidates=1 + negatives)
        self.steps_per_epoch = math.ceil(len(examples) / batch_size)

        def part(examples, size, seed):
            share = size // process_count
            return _Part(examples, size, process_index * share, share, seed)

        self._parts = [part(examples, batch_size, seed)]
        if isinstance(examples, SearchExamples):
            shape = dataclasses.replace(shape, search_rows=self._parts[0].share)
        elif searches is not None:
            size = process_count * math.ceil(len(searches) / self.steps_per_epoch / process_count)
            seed += _SEARCH_SEED
            self._parts.append(part(searches, size, seed))
            shape = dataclasses.replace(shape, search_rows=self._parts[1].share)
        self._shape = shape
        self._rows = sum(part.share for part in self._parts)

    def _with_negatives(
        self, wanted: int, examples: Examples, searches: SearchExamples | None
    ) -> tuple[int, Examples, SearchExamples | None]:
        """Fits the number of negatives to the catalogue, and the examples to that number."""
        log = self._log
        if not wanted or log.num_items - self._touched.most_of_a_user() - 1 >= wanted:
            return wanted, examples, searches
        left = [self._left(examples)]
        if searches is not None:
            left.append(self._left(searches))
        every = np.concatenate(left)
        count = min(wanted, int(np.quantile(every, _MAY_LACK, method="lower")))
        if count < 1 or any(part.max(initial=0) < count for part in left):
            raise UserError(
                f"expected items that users have not touched to train against, found none for "
                f"{np.mean(every < 1):.0%} of the training examples of {log.name} "
                f"({log.num_items} items); bring more items"
            )
        if count < wanted:
            self.remarks.append(
                f"training draws {count} negatives a target instead of {wanted}: the catalogue of "
                f"{log.num_items} items leaves no more to users"
            )
        lacking = [part < count for part in left]
        chosen = examples.take(np.flatnonzero(~lacking[0]))
        users = examples.user[lacking[0]]
        if searches is not None:
            users = np.concatenate([users, searches.user[lacking[1]]])
            searches = searches.take(np.flatnonzero(~lacking[1]))
        if len(users):
            self.remarks.append(
                f"{len(users)} of {len(every)} training examples are left out: "
                f"{who_lack(log, users, count)}"
            )
        return count, chosen, searches

    def _left(self, examples: Examples) -> np.ndarray:
        """Counts the items that could be negatives of each example, [E]."""
        target, time = targets(self._log, examples)
        return self._touched.untouched(self._log.num_items, examples.user, time, target)

    def batch_at(self, step: int) -> Batch:
        """Returns this host's share of batch `step`."""
        parts = [self._part_at(part, step) for part in self._parts]
        if len(parts) == 1:
            return parts[0]
        query = parts[1].pop("query")
        return {n: np.concatenate([part[n] for part in parts]) for n in BATCH_FIELDS} | {
            "query": query
        }

    def _part_at(self, part: _Part, step: int) -> Batch:
        first = step * part.batch_size + part.offset
        position = np.arange(first, first + part.share, dtype=np.int64)
        count = len(part.examples)
        epoch, place = np.divmod(position, count)
        epoch_keys = random_streams.keys(part.seed, epoch)
        indices = random_streams.permutation(count, epoch_keys, place)
        candidates = self._candidates(part, indices, epoch_keys)
        batch = assemble(self._log, part.examples, indices, self._shape, candidates)
        if isinstance(part.examples, SearchExamples):
            batch["query"] = current_queries(self._log, part.examples, indices, self._shape.words)
        return batch

    def _candidates(self, part: _Part, indices: np.ndarray, epoch_keys: np.ndarray) -> np.ndarray:
        """Returns examples' targets and the negatives of their epochs, [n, N]."""
        # Of these alone: those of all examples would take seconds to gather, and a gigabyte.
        target, time = targets(self._log, part.examples.take(indices))
        negatives = draw_negatives(
            self._touched,
            self._log.num_items,
            user=part.examples.user[indices],
            time=time,
            target=target,
            count=self._negatives,
            key=random_streams.keys(epoch_keys, indices),
        )
        return np.concatenate([target[:, None], negatives], 1)

    def _check(self, step: int) -> None:
        validate_batch(self.batch_at(step), self._shape, self._rows, self._log)

    def _fields(self) -> dict[str, tuple[str, type, str]]:
        return self._shape.fields()

    def stream(self, start_step: int) -> Iterator[Batch]:
        """Returns the batches from `start_step` on, made ahead of their use.

        tf.data makes them where TensorFlow is installed, threads elsewhere; the batches are the
        same. The first one is checked against the contract.

        Raises:
          UserError: the first batch breaks it (`validate_batch`).
        """
        self._check(start_step)
        if importlib.util.find_spec("tensorflow") is None:
            return ahead(self.batch_at, start_step, count=_AHEAD, threads=_THREADS)
        return self._tf_data(start_step)

    def _tf_data(self, start_step: int) -> Iterator[Batch]:
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")  # the accelerator belongs to JAX
        dtypes = {name: dtype for name, (_, dtype, _) in self._fields().items()}
        mistakes: list[UserError] = []

        def make(step):
            try:
                batch = self.batch_at(int(step))
            except UserError as error:
                # TensorFlow would log it with its traceback: an empty batch says where it was.
                mistakes.append(error)
                return [np.zeros(0, dtype) for dtype in dtypes.values()]
            return [batch[name] for name in dtypes]

        def load(step):
            values = tf.numpy_function(make, [step], list(dtypes.values()))
            return dict(zip(dtypes, values, strict=True))

        dataset = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
        dataset = dataset.map(load, num_parallel_calls=_THREADS, deterministic=True)
        # Nothing is left to tune, and the tuner sleeps for up to a minute before it ends: closing a
        # stream, so the end of a run, waited for that.
        options = tf.data.Options()
        options.autotune.enabled = False
        dataset = dataset.with_options(options)
        made = iter(dataset.prefetch(_AHEAD).as_numpy_iterator())
        return _closed_at_exit(made, mistakes)


def _closed_at_exit(iterator: Iterator[Batch], mistakes: list[UserError]) -> Iterator[Batch]:
    # An endless dataset that is alive when the interpreter ends waits for Python for ever.
    held = [iterator]
    atexit.register(held.clear)
    del iterator
    try:
        while held:
            batch = next(held[0])
            if mistakes and not batch["user"].size:
                raise mistakes[0]
            yield batch
    finally:
        held.clear()
        atexit.unregister(held.clear)


def evaluation_batches(
    log: Log,
    examples: Examples,
    candidates: np.ndarray,
    shape: BatchShape,
    batch_size: int,
) -> Iterator[Batch]:
    """Yields all examples once, in order; the last batch is padded with rows of mask 0.

    Args:
      candidates: int32 [E, N], the target in column 0.
    """
    for start in range(0, len(examples), batch_size):
        indices = np.arange(start, start + batch_size)
        real = indices < len(examples)
        indices = np.where(real, indices, 0)
        yield assemble(log, examples, indices, shape, candidates[indices], mask=real)
