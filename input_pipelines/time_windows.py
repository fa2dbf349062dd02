"""Cuts a log into windows of time, each to be tested with what was known before it.

Window n tests the clicks of [cuts[n], cuts[n+1]). Its log ends there: users, items and words that
nobody has seen by then are not in it. The last tenth of the clicks before the window selects a
state, and all before that train. The parts are the log's published split.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from core.errors import UserError
from input_pipelines.log import Log, content_hash, take_ragged
from input_pipelines.splits import history_ends
from input_pipelines.times import POSITIONS

# The share of all clicks before the first window, and of the clicks before a window those that
# select.
_FIRST, _VALIDATION = 0.5, 0.1


def cut_times(log: Log, windows: int) -> list[int]:
    """Returns the times at which windows begin, and where the last one ends: windows + 1 of them.

    Half of all clicks come before the first window, the others fill windows of equal numbers of
    clicks, as far as equal times allow.

    Raises:
      UserError: times are positions, or so few that a window would be empty.
    """
    if log.time_unit == POSITIONS:
        raise UserError(
            f"expected times of a clock in {log.name} to cut it at, found positions, which order "
            "the events of one user alone; bring the times of events"
        )
    times = np.asarray(log.rec_times)
    shares = np.linspace(_FIRST, 1.0, windows + 1)[:-1]
    cuts = [int(cut) for cut in np.quantile(times, shares, method="higher")]
    cuts.append(int(times.max()) + 1)
    if len(set(cuts)) < len(cuts) or cuts[0] <= int(times.min()):
        raise UserError(
            f"expected clicks of {log.name} at more times than can fill {windows} windows, found "
            f"{len(np.unique(times))} times; lower --windows"
        )
    return cuts


def window_log(log: Log, start: int, end: int) -> Log:
    """Returns what a log held before `end`, with a published split that tests from `start` on.

    Items that no event of the whole log names are in it too: when they joined is not known.

    Raises:
      UserError: nothing is left to train on, or to select by.
    """
    made = _before(log, end)
    times = np.asarray(made.rec_times)
    earlier = times[times < start]
    first = int(np.quantile(earlier, 1 - _VALIDATION, method="higher")) if len(earlier) else start
    rows = {
        "train": np.flatnonzero(times < first),
        "validation": np.flatnonzero((times >= first) & (times < start)),
        "test": np.flatnonzero(times >= start),
    }
    for part, of_part in rows.items():
        if not len(of_part):
            raise UserError(
                f"expected {part} clicks of {log.name} around the time {start}, found none; lower "
                "--windows"
            )
    published: dict[str, np.ndarray] = {}
    for part, of_part in rows.items():
        rec_end, search_end = history_ends(made, of_part)
        published |= {
            f"{part}_target_row": of_part.astype(np.int64),
            f"{part}_rec_end": rec_end,
            f"{part}_search_end": search_end,
        }
    made = dataclasses.replace(made, published=published)
    return dataclasses.replace(made, hash=content_hash(made))


def _taken(offsets: Any, values: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns offsets and values of some ragged rows."""
    ends, places = take_ragged(np.asarray(offsets), rows)
    return ends, np.asarray(values)[places]


def _numbered(size: int, *used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers that are used, 0 first, and the new number of each old one."""
    known = np.zeros(size + 1, bool)
    known[0] = True
    for numbers in used:
        known[numbers] = True
    return np.flatnonzero(known), (np.cumsum(known) - 1).astype(np.int32)


def _before(log: Log, end: int) -> Log:
    """Returns the events of a log before a time, and the names that they use."""
    users_of_clicks = np.repeat(np.arange(log.num_users + 1), np.diff(log.rec_offsets))
    users_of_searches = np.repeat(np.arange(log.num_users + 1), np.diff(log.search_offsets))
    clicks = np.flatnonzero(np.asarray(log.rec_times) < end)
    searches = np.flatnonzero(np.asarray(log.search_times) < end)
    word_offsets, word_ids = _taken(log.word_offsets, log.word_ids, searches)
    click_offsets, click_items = _taken(log.click_offsets, log.click_items, searches)
    rec_items = np.asarray(log.rec_items)[clicks]
    touched, every = [rec_items, click_items], [log.rec_items, log.click_items]
    changes: dict[str, Any] = {}
    if log.unclicked_offsets is not None:
        offsets, items = _taken(log.unclicked_offsets, log.unclicked_items, searches)
        touched.append(items)
        every.append(log.unclicked_items)  # type: ignore[arg-type]
        changes["unclicked_offsets"] = offsets
    untouched = np.setdiff1d(np.arange(log.num_items + 1), np.concatenate(every))
    users, user_of = _numbered(log.num_users, users_of_clicks[clicks], users_of_searches[searches])
    items, item_of = _numbered(log.num_items, untouched, *touched)
    words, word_of = _numbered(log.num_words, word_ids)
    if log.unclicked_offsets is not None:
        changes["unclicked_items"] = item_of[touched[-1]]
    for kind, rows in (
        ("user_id", users),
        ("profile", users),
        ("item_id", items),
        ("text", items),
        ("fact", items),
        ("word_text", words),
    ):
        offsets = getattr(log, f"{kind}_offsets")
        if offsets is not None:
            laid_out = _taken(offsets, getattr(log, f"{kind}_bytes"), rows)
            changes[f"{kind}_offsets"], changes[f"{kind}_bytes"] = laid_out
    for name in ("search_places", "search_begins"):
        if getattr(log, name) is not None:
            changes[name] = np.asarray(getattr(log, name))[searches]

    def offsets_of(owners: np.ndarray) -> np.ndarray:
        counts = np.bincount(user_of[owners], minlength=len(users))
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    return dataclasses.replace(
        log,
        rec_offsets=offsets_of(users_of_clicks[clicks]),
        rec_items=item_of[rec_items],
        rec_times=np.asarray(log.rec_times)[clicks],
        search_offsets=offsets_of(users_of_searches[searches]),
        search_times=np.asarray(log.search_times)[searches],
        word_offsets=word_offsets,
        word_ids=word_of[word_ids],
        click_offsets=click_offsets,
        click_items=item_of[click_items],
        published={},
        reading={},
        **changes,
    )
