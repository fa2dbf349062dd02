"""Decides which clicks are targets of training, validation and test, and what their history is."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Self

import numpy as np

from core.errors import UserError
from input_pipelines.data_card import spread
from input_pipelines.event_search import first_not_before
from input_pipelines.log import Log

_LOG = logging.getLogger(__name__)

SPLITS = ("leave_one_out", "global_time", "by_user", "published")
# Validation examples where nothing else is said; `config.data.max_validation` has the same default.
MOST_VALIDATION = 5000
# Shares of the clicks, by time, before the two cuts of global_time.
_CUTS = (0.8, 0.9)
# Shares of the users with clicks that train, and that train or validate, under by_user.
_USER_CUTS = (0.8, 0.9)
# The share of test targets in their latest earlier search above which a warning is logged.
_MANY_TOLD = 0.5
# Examples that are made, or checked, at once.
_PART = 2**18
_PUBLISHED_FIELDS = ("target_row", "rec_end", "search_end")


@dataclasses.dataclass(frozen=True)
class Examples:
    """Holds targets (user, position): everything strictly before one is its history.

    Attributes:
      user: int32 [E].
      target_row: int64 [E], row of the target click in the log.
      rec_end, search_end: int64 [E]; the history is rows offsets[user]:end of each kind.
    """

    user: np.ndarray
    target_row: np.ndarray
    rec_end: np.ndarray
    search_end: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def take(self, indices: np.ndarray | slice) -> Self:
        """Returns the examples at these places."""
        return type(self)(*(getattr(self, f.name)[indices] for f in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class Splits:
    """Holds the three parts under the split's name.

    `training_rows`, int64, are all clicks of the log that training may see, also users' first
    clicks and clicks whose history is too short for a target.
    """

    name: str
    training_rows: np.ndarray
    train: Examples
    validation: Examples
    test: Examples


def _users_of_rows(offsets: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))


def history_ends(log: Log, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (rec_end, search_end) of target click rows: what happened strictly earlier."""
    examples = _examples(log, rows)
    return examples.rec_end, examples.search_end


def search_history_ends(log: Log, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (rec_end, search_end) of search rows: what happened strictly before their asking."""
    begins = log.search_times if log.search_begins is None else log.search_begins
    return _earlier(log, _owners(log.search_offsets, rows), begins[rows])


def _owners(offsets: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns the users of some rows, int32."""
    return (np.searchsorted(offsets, rows, side="right") - 1).astype(np.int32)


def _earlier(log: Log, users: np.ndarray, moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the clicks and the searches of users end that came before moments, int64."""
    clicks, searches = (
        first_not_before(times, np.asarray(offsets)[users], np.asarray(offsets)[users + 1], moments)
        for times, offsets in (
            (log.rec_times, log.rec_offsets),
            (log.search_times, log.search_offsets),
        )
    )
    return clicks, searches


def _examples(log: Log, rows: np.ndarray, least: int = 0) -> Examples:
    """Returns the examples of target clicks that have `least` events before them.

    They are made in parts, so that memory holds little beside them.
    """
    made = Examples(
        np.empty(len(rows), np.int32), *(np.empty(len(rows), np.int64) for _ in range(3))
    )
    size = 0
    for start in range(0, len(rows), _PART):
        part = rows[start : start + _PART].astype(np.int64)
        users = _owners(log.rec_offsets, part)
        some = Examples(users, part, *_earlier(log, users, log.rec_times[part]))
        if least:
            some = some.take(np.flatnonzero(_lengths(log, some).sum(0) >= least))
        for field in dataclasses.fields(Examples):
            getattr(made, field.name)[size : size + len(some)] = getattr(some, field.name)
        size += len(some)
    return made.take(slice(0, size))


def _lengths(log: Log, examples: Examples) -> np.ndarray:
    """Counts the clicks and the searches in the examples' histories, int64 [2, E]."""
    offsets = (np.asarray(each)[examples.user] for each in (log.rec_offsets, log.search_offsets))
    ends = (examples.rec_end, examples.search_end)
    return np.stack([end - begin for end, begin in zip(ends, offsets, strict=True)])


def split_log(
    log: Log,
    name: str,
    *,
    min_history: int = 1,
    seed: int = 0,
    max_validation: int = MOST_VALIDATION,
) -> Splits:
    """Splits the log's clicks into training, validation and test.

    leave_one_out: a user with at least 3 clicks gives the last to test and the one before to
    validation; every other click trains. global_time: clicks before the .8 quantile of all click
    times train, up to the .9 quantile validate, the rest test. by_user: a random .8 of the users
    with clicks train with all their clicks; of a random .1 each the last click validates or tests
    (CRS 4.1.3), and nothing of these users trains. published: the split that came with the data;
    training may see its targets and everything before them that is not held out.

    Args:
      name: 'leave_one_out', 'global_time', 'by_user' or 'published'.
      min_history: events, of either kind, before a training target; held-out ones need none.
      seed: of the choice of validation examples, and of users under by_user.
      max_validation: validation examples at most.

    Raises:
      UserError: no such split, or none was published with the data.
    """
    if name not in SPLITS:
        raise UserError(f"expected data.split in {', '.join(SPLITS)}, found {name!r}; pass one")
    if name == "published":
        return _published(log, min_history, seed, max_validation)
    training = np.ones(len(log.rec_items), bool)
    if name == "leave_one_out":
        offsets = np.asarray(log.rec_offsets)
        test = offsets[1:][np.diff(offsets) >= 3] - 1
        validation = test - 1
        training[test] = training[validation] = False
    elif name == "by_user":
        offsets, part = np.asarray(log.rec_offsets), _user_parts(log, seed)
        last = np.diff(offsets) > 0
        validation, test = (offsets[1:][last & (part == number)] - 1 for number in (1, 2))
        training = np.repeat(part == 0, np.diff(offsets))
    else:
        times = np.asarray(log.rec_times)
        first, second = np.quantile(times, _CUTS)
        training = times < first
        validation = np.flatnonzero((times >= first) & (times < second))
        test = np.flatnonzero(times >= second)
    rows = np.flatnonzero(training)
    return Splits(
        name,
        rows,
        _examples(log, rows, min_history),
        _examples(log, _choose(validation, max_validation, seed)),
        _examples(log, test),
    )


def _user_parts(log: Log, seed: int) -> np.ndarray:
    """Returns 0, 1 or 2 for each user number [U+1]: trains, validates, tests."""
    active = np.flatnonzero(np.diff(log.rec_offsets) > 0)
    order = np.random.default_rng(seed).permutation(active)
    parts = np.zeros(log.num_users + 1, np.int64)
    first, second = (int(share * len(active)) for share in _USER_CUTS)
    parts[order[first:second]], parts[order[second:]] = 1, 2
    return parts


def _with_history(log: Log, train: Examples, least: int) -> Examples:
    return train.take(np.flatnonzero(_lengths(log, train).sum(0) >= least))


def _choose(values: np.ndarray, most: int, seed: int) -> np.ndarray:
    if len(values) <= most:
        return values
    return np.sort(np.random.default_rng(seed).choice(values, most, replace=False))


def _published(log: Log, min_history: int, seed: int, max_validation: int) -> Splits:
    if not log.published:
        raise UserError(
            f"expected a split that came with {log.name}, found none; pass leave_one_out "
            "or global_time"
        )
    users = _users_of_rows(log.rec_offsets)

    def part(name: str) -> Examples:
        fields = {f: np.asarray(log.published[f"{name}_{f}"]) for f in _PUBLISHED_FIELDS}
        return Examples(user=users[fields["target_row"]], **fields)

    train, validation, test = (part(name) for name in ("train", "validation", "test"))
    held_out = np.zeros(len(users), bool)
    held_out[validation.target_row] = held_out[test.target_row] = True
    # The latest click of each user that a training example shows.
    latest = np.full(log.num_users + 1, -1, np.int64)
    np.maximum.at(latest, train.user, train.target_row)
    seen = np.arange(len(users)) <= latest[users]
    return Splits(
        "published",
        np.flatnonzero(seen & ~held_out),
        _with_history(log, train, min_history),
        validation.take(_choose(np.arange(len(validation)), max_validation, seed)),
        test,
    )


def targets_in_latest_search(log: Log, examples: Examples) -> np.ndarray:
    """Tells which targets their latest earlier search has among its clicked items, bool [E].

    A model that repeats the clicks of the latest search is right about these. In a log that tells
    each click twice, as a search's and again as a later one, nearly all targets are such, and being
    right about them is worth nothing.
    """
    users, starts = examples.user, np.asarray(log.search_offsets)
    some = np.flatnonzero(examples.search_end > starts[users])
    searches = examples.search_end[some] - 1
    first = log.click_offsets[searches]
    lengths = log.click_offsets[searches + 1] - first
    owners = np.repeat(np.arange(len(some)), lengths)
    rows = np.repeat(first - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    targets = log.rec_items[examples.target_row[some]]
    told = np.zeros(len(examples), bool)
    told[some[owners[log.click_items[rows] == targets[owners]]]] = True
    return told


def warn_of_told_targets(log: Log, splits: Splits) -> None:
    """Logs a warning where over half of the test targets are `targets_in_latest_search`."""
    told = targets_in_latest_search(log, splits.test)
    if len(told) and told.mean() > _MANY_TOLD:
        _LOG.warning(
            "%s: %d of %d test targets (%.0f%%) are clicked items of their latest earlier search: "
            "repeating it is right about them. If clicks are told twice, by a search and again as "
            "clicks, name each click's search (csv_log: search_session of clicks)",
            *(log.name, told.sum(), len(told), 100 * told.mean()),
        )


def describe(log: Log, splits: Splits) -> dict[str, Any]:
    """Returns the data card's part on a split: its sizes and the lengths of training histories."""
    train = splits.train

    def lengths(offsets: np.ndarray, ends: np.ndarray) -> np.ndarray:
        counts = np.empty(len(train), np.int32)
        for start in range(0, len(train), _PART):
            part = slice(start, start + _PART)
            counts[part] = ends[part] - np.asarray(offsets)[train.user[part]]
        return counts

    parts = {part: getattr(splits, part) for part in ("train", "validation", "test")}
    return {
        "split": splits.name,
        "examples": {part: len(examples) for part, examples in parts.items()},
        "targets_in_latest_search": {
            part: sum(
                int(targets_in_latest_search(log, examples.take(slice(start, start + _PART))).sum())
                for start in range(0, len(examples), _PART)
            )
            for part, examples in parts.items()
        },
        "clicks_in_training_histories": spread(lengths(log.rec_offsets, train.rec_end)),
        "searches_in_training_histories": spread(lengths(log.search_offsets, train.search_end)),
    }


def check_leakage(log: Log, splits: Splits) -> None:
    """Checks that histories end before their targets and that no held-out target trains.

    Raises:
      UserError: a history holds an event at or after its target, or a held-out target trains.
    """
    held_out = np.zeros(len(log.rec_items), bool)
    held_out[splits.validation.target_row] = held_out[splits.test.target_row] = True
    shared = int(held_out[splits.train.target_row].sum())
    if shared:
        raise UserError(
            f"expected no held-out target in training, found {shared} in {log.name}; report "
            "this split"
        )
    for part in ("train", "validation", "test"):
        every: Examples = getattr(splits, part)
        strays, late = 0, 0
        for start in range(0, len(every), _PART):
            some = _strays(log, every.take(slice(start, start + _PART)))
            strays, late = strays + some[0], late + some[1]
        if strays:
            raise UserError(
                f"expected every history of {part} to hold its own user's events, found {strays} "
                f"that do not in {log.name}; report this split"
            )
        if late:
            raise UserError(
                f"expected every history of {part} to end before its target, found {late} that do "
                f"not in {log.name}; sort the source by time"
            )


def _strays(log: Log, examples: Examples) -> tuple[int, int]:
    """Counts the histories with another user's events, and those that do not end in time."""
    strays, late = 0, 0
    times = log.rec_times[examples.target_row]
    for ends, event_times, offsets in (
        (examples.rec_end, log.rec_times, log.rec_offsets),
        (examples.search_end, log.search_times, log.search_offsets),
    ):
        starts, stops = (np.asarray(offsets)[examples.user + i] for i in (0, 1))
        inside = (ends >= starts) & (ends <= stops)
        strays += int((~inside).sum())
        nonempty = np.flatnonzero(inside & (ends > starts))
        latest = event_times[ends[nonempty] - 1]
        late += int((latest >= times[nonempty]).sum())
    return strays, late
