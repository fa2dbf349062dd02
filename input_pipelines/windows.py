"""Makes batches of windows: consecutive targets of a user that share the rows of one history.

Neighbouring targets of a user see nearly the same events. A window holds up to M of them and the
events that any of them sees; a row of a batch holds as many windows side by side as fit, of one or
several users. The model encodes a row once for all its targets (`lcrsr.views`).

Axes: V rows of windows, T target places a row, B = V T, E events of the kind, N candidates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import xxhash

from core.errors import UserError
from input_pipelines import random_streams
from input_pipelines.batches import (
    Batch,
    BatchShape,
    TrainBatches,
    first_of_ragged,
    validate_fields,
)
from input_pipelines.candidates import TouchedItems
from input_pipelines.log import Log
from input_pipelines.splits import Examples

# (name, what makes arrays) -> these arrays.
Keep: TypeAlias = Callable[[str, Callable[[], dict[str, np.ndarray]]], Mapping[str, np.ndarray]]

# name -> (axes, dtype, meaning). `batches.BATCH_FIELDS` with rows of windows in place of histories.
WINDOW_FIELDS: dict[str, tuple[str, type, str]] = {
    "user": ("B", np.int32, "user id of each target"),
    "rec_items": ("V Er", np.int32, "clicked items; 0 between and behind the windows"),
    "query_words": ("V Es W", np.int32, "word ids of each search"),
    "clicked_items": ("V Es C", np.int32, "items clicked in each search"),
    "rec_sees": ("V Er", np.int32, "the first click that this click sees, as its place in the row"),
    "rec_places": ("V Er", np.int32, "position that this click is encoded with, below Lr"),
    "rec_first": ("B", np.int32, "place of the first click of the target's history"),
    "rec_end": ("B", np.int32, "place after its last click; rec_first where it has none"),
    "search_sees": ("V Es", np.int32, "as rec_sees, of searches"),
    "search_places": ("V Es", np.int32, "as rec_places, of searches, below Ls"),
    "search_first": ("B", np.int32, "as rec_first, of searches"),
    "search_end": ("B", np.int32, "as rec_end, of searches"),
    "candidates": ("B N", np.int32, "items to score; the target is column 0"),
    "labels": ("B N", np.float32, "1 for the target, 0 for negatives"),
    "mask": ("B", np.float32, "0 for target places that are not filled, which count nothing"),
}
# Rows that a window may still join: more would fill them better, and take longer.
_OPEN_ROWS = 32
# Lengths of a row that are tried, in those of its largest window, on so many windows.
_STRETCHES, _TRIED = (1.0, 1.5, 2.0, 3.0), 4000
# What a target costs beside looking at the clicks of its row, in clicks: the width of the tables
# and somewhat more.
_COST_OF_TARGET = 100
# What `fill_rows` counts a row.
_PLACES = ("targets", "clicks", "searches")
# Added to the seed for the order in which windows are packed, far from other seeds.
_PACKING_SEED = 3_000_017


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowShape:
    """Holds the sizes of window batches: V, T, both E, W, C and N; and Lr and Ls."""

    rows: int
    targets: int
    clicks_a_row: int
    searches_a_row: int
    histories: BatchShape

    def sizes(self) -> dict[str, int]:
        """Returns the length of each axis by its letter."""
        return {
            "V": self.rows,
            "B": self.rows * self.targets,
            "Er": self.clicks_a_row,
            "Es": self.searches_a_row,
            "W": self.histories.words,
            "C": self.histories.clicks,
            "N": self.histories.candidates,
        }


def validate_windows(batch: Batch, shape: WindowShape, log: Log) -> None:
    """Checks the names, shapes, dtypes, id ranges and places of a batch of windows.

    Raises:
      UserError: the batch breaks the contract; names the field.
    """
    validate_fields(batch, WINDOW_FIELDS, shape.sizes(), log)
    lengths = {"rec": shape.histories.rec_length, "search": shape.histories.search_length}
    for side, length in lengths.items():
        events = batch[f"{side}_sees"].shape[1]
        below = {"sees": events, "places": length, "first": events, "end": events + 1}
        for name, limit in below.items():
            value = batch[f"{side}_{name}"]
            if np.any((value < 0) | (value >= limit)):
                raise UserError(
                    f"expected places of batch field {side}_{name} from 0 to {limit - 1}, found "
                    f"{int(value.min())} to {int(value.max())}; use `WindowBatches`"
                )
        if np.any(batch[f"{side}_first"] > batch[f"{side}_end"]):
            raise UserError(
                f"expected batch field {side}_end at or after {side}_first, found one before it; "
                "use `WindowBatches`"
            )


@dataclasses.dataclass(frozen=True)
class _Events:
    """Holds which events of one kind each window needs.

    Attributes:
      begin: int64 [w], log row of the first event.
      span: int64 [w], how many events.
      pad: int64 [w], 1 where a row of padding comes before them, for targets without any.
    """

    begin: np.ndarray
    span: np.ndarray
    pad: np.ndarray

    @property
    def places(self) -> np.ndarray:
        return self.pad + self.span


@dataclasses.dataclass(frozen=True)
class Windows:
    """Holds windows of training targets, in the order in which rows are filled with them.

    Attributes:
      first: int64 [w], index of the first target among the sorted examples.
      targets: int64 [w], how many.
      clicks, searches: the events that they see.
    """

    first: np.ndarray
    targets: np.ndarray
    clicks: _Events
    searches: _Events

    def __len__(self) -> int:
        return len(self.first)

    def take(self, chosen: np.ndarray) -> Windows:
        def of(events):
            return _Events(events.begin[chosen], events.span[chosen], events.pad[chosen])

        return Windows(self.first[chosen], self.targets[chosen], of(self.clicks), of(self.searches))


def _needed(began: np.ndarray, ends: np.ndarray, first: np.ndarray) -> _Events:
    """Returns the events between any target's first, `began` [E], and last, before `ends` [E].

    Args:
      first: int64 [w], where each window begins among the targets.
    """
    begin = np.minimum.reduceat(began, first)
    # A target without events needs a row that no event takes.
    alone = np.logical_or.reduceat(ends == began, first)
    return _Events(begin, np.maximum.reduceat(ends, first) - begin, alone.astype(np.int64))


def _began(offsets: np.ndarray, users: np.ndarray, ends: np.ndarray, length: int) -> np.ndarray:
    """Returns the log row of each target's first event, of at most `length` before `ends`."""
    return np.maximum(np.asarray(offsets)[users], ends - length)


def cut_windows(
    log: Log, examples: Examples, *, targets: int, rec_length: int, search_length: int
) -> Windows:
    """Cuts every user's targets, in time order, into windows of at most `targets`.

    A window whose targets would see more than `rec_length + targets` clicks or `search_length +
    targets` searches together, as where many searches lie between two clicks, is halved until
    they do not. Every target is in exactly one window.

    Args:
      examples: sorted by user and time.
    """
    users = examples.user
    begins = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])
    of_user = np.arange(len(users)) - np.repeat(begins, np.diff(np.r_[begins, len(users)]))
    first = np.flatnonzero(of_user % targets == 0)
    rec_began = _began(log.rec_offsets, users, examples.rec_end, rec_length)
    search_began = _began(log.search_offsets, users, examples.search_end, search_length)
    while True:
        last = np.r_[first[1:], len(users)] - 1
        clicks = _needed(rec_began, examples.rec_end, first)
        searches = _needed(search_began, examples.search_end, first)
        too_many = (clicks.span > rec_length + targets) | (searches.span > search_length + targets)
        if not too_many.any():
            return Windows(first, last - first + 1, clicks, searches)
        middle = (first + last + 1)[too_many] // 2
        first = np.sort(np.r_[first, middle])


def fill_rows(windows: Windows) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Decides which windows share a row.

    A row has places for the clicks of the largest window, or for more where windows then leave
    fewer places empty, and for as many targets and searches as usually come with these clicks. A
    window goes to the first of the open rows that has room for it.

    Returns:
      (order int64 [w] of the windows by rows, starts int64 [r+1], row i holds those from starts[i]
      to starts[i+1] - 1; places a row by name: 'targets', 'clicks', 'searches').
    """
    needs = {
        "targets": windows.targets,
        "clicks": np.maximum(windows.clicks.places, 1),
        "searches": np.maximum(windows.searches.places, 1),
    }
    every = np.stack(list(needs.values()), 1)

    def places_of(clicks: int) -> tuple[int, ...]:
        usual = np.ceil(clicks * every.sum(0) / every[:, 1].sum()).astype(int)
        return tuple(int(n) for n in np.maximum(usual, every.max(0)))

    def cost(places: tuple[int, ...]) -> float:
        rows = _first_fit(every[:_TRIED], places).max() + 1
        return (_COST_OF_TARGET + places[1]) * rows * places[0]

    largest = int(every[:, 1].max())
    best = min((places_of(round(largest * stretch)) for stretch in _STRETCHES), key=cost)
    places = dict(zip(needs, best, strict=True))
    row_of = _first_fit(every, best)
    order = np.argsort(row_of, kind="stable")
    starts = np.searchsorted(row_of[order], np.arange(row_of.max() + 2))
    return order, starts, places


def _first_fit(needs: np.ndarray, places: tuple[int, ...]) -> np.ndarray:
    """Returns the row of each window, int64 [w]; windows need [w, 3] of a row's places."""
    rows, count = [], 0
    # [row, room for each need]; the longest open row is first.
    opened: list[list[int]] = []
    for targets, clicks, searches in needs.tolist():
        for row in opened:
            if targets <= row[1] and clicks <= row[2] and searches <= row[3]:
                break
        else:
            if len(opened) == _OPEN_ROWS:
                opened.pop(0)
            row = [count, *places]
            opened.append(row)
            count += 1
        row[1] -= targets
        row[2] -= clicks
        row[3] -= searches
        if min(row[1:]) == 0:
            opened.remove(row)
        rows.append(row[0])
    return np.array(rows)


def rows_a_batch(wanted: float, multiple: int) -> int:
    """Returns how many rows a batch has, about `wanted`.

    A power of two that is at most a quarter of them divides them, so that a mesh of up to as many
    devices reads the batches of one device.

    Args:
      multiple: what must divide them.
    """
    even = 2 ** max(0, math.floor(math.log2(max(wanted, 1.0))) - 2)
    multiple = math.lcm(even, multiple)
    return max(1, round(wanted / multiple)) * multiple


def pack(
    log: Log,
    examples: Examples,
    *,
    targets: int,
    rec_length: int,
    search_length: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Returns the windows of examples in the order of the rows that hold them, as arrays.

    Args:
      examples: sorted by user and time.
      targets, rec_length, search_length: as of `cut_windows`.
      seed: of the order in which rows are filled.

    Returns:
      what `windows_of` reads, with 'starts' as of `fill_rows`, and 'places', of `_PLACES` a row.
    """
    windows = cut_windows(
        log, examples, targets=targets, rec_length=rec_length, search_length=search_length
    )
    order = random_streams.permutation(
        len(windows), random_streams.keys(seed + _PACKING_SEED), np.arange(len(windows))
    )
    windows = windows.take(order)
    order, starts, places = fill_rows(windows)
    windows = windows.take(order)
    sides = {
        f"{side}_{field.name}": getattr(getattr(windows, side), field.name)
        for side in ("clicks", "searches")
        for field in dataclasses.fields(_Events)
    }
    return sides | {
        "first": windows.first,
        "targets": windows.targets,
        "starts": starts,
        "places": np.array([places[name] for name in _PLACES]),
    }


def windows_of(packed: Mapping[str, np.ndarray]) -> Windows:
    """Returns the windows of what `pack` has made."""
    clicks, searches = (
        _Events(*(packed[f"{side}_{field.name}"] for field in dataclasses.fields(_Events)))
        for side in ("clicks", "searches")
    )
    return Windows(packed["first"], packed["targets"], clicks, searches)


class WindowBatches(TrainBatches):
    """Makes endless training batches of windows, each a pure function of its step.

    Rows of windows are packed once; row p of the stream is `permutation(p mod n)` of epoch `p //
    n`. Every training target is in exactly one row. Negatives are those that a target has where
    examples are read one by one. A batch has as many rows as hold `batch_size` targets on average.

    Args:
      targets_per_window: M, at most so many consecutive targets share a history.
      row_multiple: what the number of rows of a batch must be divisible by.
      keep: given a name and what makes arrays, returns the arrays, made now or before.
      The others as for `TrainBatches`.

    Attributes:
      described: one line on the rows, with the share of their places that is filled.
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
        targets_per_window: int,
        process_index: int = 0,
        process_count: int = 1,
        row_multiple: int = 1,
        touched: TouchedItems | None = None,
        keep: Keep | None = None,
    ):
        super().__init__(
            log,
            examples,
            shape,
            batch_size=batch_size,
            seed=seed,
            negatives=negatives,
            touched=touched,
        )
        shape = self._shape
        (self._part,) = self._parts
        examples = self._part.examples
        # Those of a whole split are in order already, and an order of them takes long to find.
        ordered = bool(np.all(np.diff(examples.target_row) > 0))
        self._sorted = (
            np.arange(len(examples))
            if ordered
            else np.lexsort((examples.target_row, examples.user))
        )

        def packed() -> dict[str, np.ndarray]:
            return pack(
                log,
                examples if ordered else examples.take(self._sorted),
                targets=targets_per_window,
                rec_length=shape.rec_length,
                search_length=shape.search_length,
                seed=seed,
            )

        rows = xxhash.xxh3_64(np.ascontiguousarray(examples.target_row).data).hexdigest()
        name = f"{targets_per_window}-{shape.rec_length}-{shape.search_length}-{seed}-{rows}"
        known = packed() if keep is None else keep(f"windows-{name}", packed)
        self._windows, self._starts = windows_of(known), known["starts"]
        places = dict(zip(_PLACES, known["places"].tolist(), strict=True))
        count = len(self._starts) - 1
        self._batch_rows = rows_a_batch(
            batch_size * count / len(self._sorted), math.lcm(row_multiple, process_count)
        )
        self._here = self._batch_rows // process_count
        self._offset = process_index * self._here
        self.steps_per_epoch = -(-count // self._batch_rows)
        self.window_shape = WindowShape(
            rows=self._here,
            targets=places["targets"],
            clicks_a_row=places["clicks"],
            searches_a_row=places["searches"],
            histories=shape,
        )
        shares = {
            "targets": self._windows.targets.sum(),
            "clicks": self._windows.clicks.span.sum(),
            "searches": self._windows.searches.span.sum(),
        }
        filled = ", ".join(
            f"{places[name]} {name} ({float(total) / count / places[name]:.0%} filled)"
            for name, total in shares.items()
        )
        self.described = (
            f"windows of at most {targets_per_window} targets in {count} rows of {filled}; "
            f"{self._batch_rows} rows a batch"
        )

    def batch_at(self, step: int) -> Batch:
        """Returns this host's share of batch `step`."""
        first = step * self._batch_rows + self._offset
        position = np.arange(first, first + self._here, dtype=np.int64)
        count = len(self._starts) - 1
        epoch, place = np.divmod(position, count)
        epoch_keys = random_streams.keys(self._part.seed, epoch)
        rows = random_streams.permutation(count, epoch_keys, place)
        return self._assembled(rows, epoch)

    def _assembled(self, rows: np.ndarray, epoch: np.ndarray) -> Batch:
        shape, examples = self.window_shape, self._part.examples
        sizes = self._starts[rows + 1] - self._starts[rows]
        chosen = self._windows.take(_ranges(self._starts[rows], sizes))
        row = np.repeat(np.arange(len(rows)), sizes)
        clicks, of_clicks = self._side(
            chosen.clicks, row, shape.clicks_a_row, shape.histories.rec_length
        )
        searches, of_searches = self._side(
            chosen.searches, row, shape.searches_a_row, shape.histories.search_length
        )
        target, place = self._targets(chosen, row)
        number = np.repeat(np.arange(len(chosen)), chosen.targets)
        log, taken = self._log, examples.take(target)
        size = shape.rows * shape.targets
        candidates = np.zeros((size, shape.histories.candidates), np.int32)
        candidates[place] = self._candidates(
            self._part, target, random_streams.keys(self._part.seed, epoch[row[number]])
        )
        labels = np.zeros(candidates.shape, np.float32)
        labels[place, 0] = 1.0
        sides = {}
        lengths = shape.histories.rec_length, shape.histories.search_length
        for side, events, columns, offsets, ends, length in (
            ("rec", chosen.clicks, of_clicks, log.rec_offsets, taken.rec_end, lengths[0]),
            (
                "search", chosen.searches, of_searches,
                log.search_offsets, taken.search_end, lengths[1],
            ),
        ):  # fmt: skip
            began = _began(offsets, taken.user, ends, length)
            empty = ends == began
            base = columns["base"][number]
            # The events of a window follow its row of padding, where it has one.
            first = np.where(empty, base, base + events.pad[number] + began - events.begin[number])
            for name, value in (("first", first), ("end", first + (ends - began))):
                filled = np.zeros(size, np.int32)
                filled[place] = value
                sides[f"{side}_{name}"] = filled
            sides[f"{side}_sees"], sides[f"{side}_places"] = columns["sees"], columns["places"]
        user, mask = np.zeros(size, np.int32), np.zeros(size, np.float32)
        user[place], mask[place] = taken.user, 1.0
        rec_rows, rec_real = clicks
        search_rows, search_real = searches
        return {
            "user": user,
            "rec_items": np.where(rec_real, log.rec_items[rec_rows], 0).astype(np.int32),
            "query_words": first_of_ragged(
                log.word_offsets, log.word_ids, search_rows, search_real, shape.histories.words
            ),
            "clicked_items": first_of_ragged(
                log.click_offsets, log.click_items, search_rows, search_real, shape.histories.clicks
            ),
            "candidates": candidates,
            "labels": labels,
            "mask": mask,
        } | sides

    def _targets(self, chosen: Windows, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the windows' targets as indices of examples, and their places in the batch."""
        base = row * self.window_shape.targets + _within(chosen.targets, row)
        place = _ranges(base, chosen.targets)
        return self._sorted[_ranges(chosen.first, chosen.targets)], place

    def _side(
        self, events: _Events, row: np.ndarray, width: int, length: int
    ) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
        """Lays the windows' events of one kind into rows.

        Returns:
          ((log rows [V, E], which of them are real), the windows' bases in their rows [w], and
          what events see and their places [V, E]).
        """
        places = np.maximum(events.places, 1)
        base = _within(places, row)
        shape = (self.window_shape.rows, width)
        log_rows, real = np.zeros(shape, np.int64), np.zeros(shape, bool)
        # Padding sees itself alone.
        sees = np.broadcast_to(np.arange(width, dtype=np.int32), shape).copy()
        position = np.zeros(shape, np.int32)
        number = np.repeat(np.arange(len(places)), events.span)
        within = _ranges(np.zeros(len(places), np.int64), events.span)
        start = (base + events.pad)[number]
        at = (row[number], start + within)
        log_rows[at] = events.begin[number] + within
        real[at] = True
        sees[at] = start + np.maximum(within - length + 1, 0)
        # Counted back from the window's last event, which a history read alone ends with too.
        position[at] = np.maximum(within - np.maximum(events.span[number] - length, 0), 0)
        return (log_rows, real), {"base": base, "sees": sees, "places": position}

    def _check(self, step: int) -> None:
        validate_windows(self.batch_at(step), self.window_shape, self._log)

    def _fields(self) -> dict[str, tuple[str, type, str]]:
        return WINDOW_FIELDS


def _ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Returns starts[0], starts[0] + 1, .. of each range, one after the other."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + sizes, sizes)


def _within(sizes: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Returns where each window begins in its row, whose windows follow one another."""
    begin = np.cumsum(sizes) - sizes
    first = np.searchsorted(row, row)
    return begin - begin[first]
