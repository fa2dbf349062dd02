"""Makes the candidates of a target: sampled negatives, saved evaluation lists, seen items."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

import numpy as np

from core import checksums
from core.errors import UserError
from core.files import load_npy, save_npy
from input_pipelines import random_streams, segmenters
from input_pipelines.bm25 import ItemTextIndex, nearest_negatives
from input_pipelines.log import Log
from input_pipelines.prepared_log import place_beside
from input_pipelines.search_task import SearchExamples, held_out_searches, targets
from input_pipelines.splits import Examples, Splits

PROTOCOLS = ("neg99", "neg99pop")
# Of searches: the items nearest to the query.
BM25 = "bm25_99"
# The lists that came with the data.
PUBLISHED = "published99"
_NEGATIVES = 99
# Rounds of draws that are refused where they do not fit, before what is left is drawn exactly.
_ROUNDS = 8
# Events of the users whose touched items are sorted at once.
_TOUCHED_ROWS = 2**21
# Keys of an exact draw that are held at once.
_RACE_CELLS = 4_000_000
# Users that a warning names.
_NAMED = 3
# Stands in the lists' file names; lists drawn by older rules have another number or none.
_VERSION = 2


def touched_arrays(log: Log, rows: int = _TOUCHED_ROWS) -> dict[str, np.ndarray]:
    """Returns what `TouchedItems` looks up: one int64 a pair of user and item, and its first time.

    They are sorted, with where each user's begin, int64 [U+2].

    Args:
      rows: of events, so many are sorted at once where users have no more.
    """
    rec_offsets, search_offsets, click_offsets = (
        np.asarray(each) for each in (log.rec_offsets, log.search_offsets, log.click_offsets)
    )
    # Where each user's items of searches begin.
    item_offsets = click_offsets[search_offsets]
    starts = rec_offsets + item_offsets
    span = np.int64(log.num_items + 1)
    keys, times = (np.empty(int(starts[-1]), np.int64) for _ in range(2))
    size, user, users = 0, 0, len(starts) - 1
    while user < users:
        # Some users at a time: sorting all at once takes four times the memory.
        end = int(np.searchsorted(starts, starts[user] + rows, side="right")) - 1
        end = min(max(end, user + 1), users)
        numbers = np.arange(user, end)
        some, clicked = (slice(each[user], each[end]) for each in (rec_offsets, item_offsets))
        searches = slice(search_offsets[user], search_offsets[end])
        lengths = np.diff(click_offsets[searches.start : searches.stop + 1])
        owner = np.concatenate(
            [
                np.repeat(numbers, np.diff(each[user : end + 1]))
                for each in (rec_offsets, item_offsets)
            ]
        )
        item = np.concatenate([log.rec_items[some], log.click_items[clicked]])
        time = np.concatenate([log.rec_times[some], np.repeat(log.search_times[searches], lengths)])
        key = owner * span + item
        order = np.argsort(key, kind="stable")
        key = key[order]
        first = np.ones(len(key), bool)
        first[1:] = key[1:] != key[:-1]
        found = slice(size, size + int(first.sum()))
        keys[found] = key[first]
        if len(key):
            times[found] = np.minimum.reduceat(time[order], np.flatnonzero(first))
        size, user = found.stop, end
    keys, times = keys[:size], times[:size]
    return {
        "keys": keys,
        "times": times,
        "user_starts": np.searchsorted(keys, np.arange(log.num_users + 2, dtype=np.int64) * span),
    }


class TouchedItems:
    """Tells when each user first touched each item, in a recommendation or in a search.

    Args:
      log: the log.
      arrays: what `touched_arrays` has found in it; None finds it now.
    """

    def __init__(self, log: Log, arrays: Mapping[str, np.ndarray] | None = None):
        found = touched_arrays(log) if arrays is None else arrays
        self._span = np.int64(log.num_items + 1)
        self._keys, self._times = found["keys"], found["times"]
        self._user_starts = found["user_starts"]

    def before(self, user: np.ndarray, item: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Tells where `user` touched `item` at `time` or earlier; all arrays have one shape."""
        wanted = user.astype(np.int64) * self._span + item
        # Halving within the user's own keys stays in the cache, a search of all keys does not.
        place, end = self._user_starts[user], self._user_starts[user + 1]
        longest = int((end - place).max(initial=0))
        for _ in range(longest.bit_length()):
            middle = (place + end) >> 1
            below = (place < end) & (self._keys[np.minimum(middle, len(self._keys) - 1)] < wanted)
            place = np.where(below, middle + 1, place)
            end = np.where(below, end, middle)
        place = np.minimum(place, len(self._keys) - 1)
        return (self._keys[place] == wanted) & (self._times[place] <= time)

    def of_user(self, user: int, *, earlier_than: int | None = None) -> np.ndarray:
        """Returns the items a user touched, int32, ascending: all, or only before a time."""
        part = slice(self._user_starts[user], self._user_starts[user + 1])
        items = (self._keys[part] - user * self._span).astype(np.int32)
        return items if earlier_than is None else items[self._times[part] < earlier_than]

    def up_to(self, user: int, time: int) -> np.ndarray:
        """Returns the items a user touched at `time` or earlier, int32, ascending."""
        part = slice(self._user_starts[user], self._user_starts[user + 1])
        items = (self._keys[part] - user * self._span).astype(np.int32)
        return items[self._times[part] <= time]

    def untouched(
        self, num_items: int, user: np.ndarray, time: np.ndarray, target: np.ndarray
    ) -> np.ndarray:
        """Counts the items of 1..V that could be negatives of an example.

        Args:
          num_items: V.
          user, time, target: [n].

        Returns:
          int64 [n]: how many items are neither the target nor touched by the user up to `time`.
        """
        touched = np.empty(len(user), np.int64)
        for one in np.unique(user):
            rows = user == one
            times = np.sort(self._times[self._user_starts[one] : self._user_starts[one + 1]])
            touched[rows] = np.searchsorted(times, time[rows], side="right")
        return num_items - touched - ~self.before(user, target, time)

    def most_of_a_user(self) -> int:
        """Returns how many items the user with the most of them touched."""
        return int(np.diff(self._user_starts).max(initial=0))


def draw_negatives(
    touched: TouchedItems,
    num_items: int,
    *,
    user: np.ndarray,
    time: np.ndarray,
    target: np.ndarray,
    count: int,
    key: np.ndarray,
    pool: np.ndarray | None = None,
) -> np.ndarray:
    """Draws distinct items that are neither the target nor touched by the user up to `time`.

    Items are drawn one after the other, each in proportion to its weight among the items that are
    left. Draws are made with replacement, and items that do not fit are refused. For users who have
    touched nearly everything, a race of exponential variables over the items left to them ends this
    after a few rounds: the smallest of Exp(1) / weight come first, which is the same law
    (Efraimidis and Spirakis 2006). The function is pure: the same keys give the same negatives, in
    any batch.

    Args:
      num_items: V; items are drawn uniformly from 1..V.
      user, time, target: [n].
      count: negatives a row.
      key: uint64 [n].
      pool: items to draw from with multiplicity instead (interactions, for popularity).

    Returns:
      int32 [n, count]; a row of zeros where fewer than `count` items are left to the user.
    """
    limit = num_items if pool is None else len(pool)
    chosen = np.zeros((len(user), count), np.int32)
    filled = np.zeros(len(user), np.int64)
    rows = np.arange(len(user))
    for draw in range(_ROUNDS if limit else 0):
        # Twice what is missing at the start; refused draws are filled by the next round.
        width = count + max(2, count // 8) if draw == 0 else 2 * count + 8
        numbers = random_streams.below(random_streams.keys(key[rows], draw), width, limit)
        items = (numbers + 1 if pool is None else pool[numbers]).astype(np.int32)
        good = items != target[rows, None]
        users = np.broadcast_to(user[rows, None], items.shape)
        good &= ~touched.before(users, items, np.broadcast_to(time[rows, None], items.shape))
        good &= ~_repeats(np.concatenate([chosen[rows], items], 1))[:, count:]
        place = filled[rows, None] + np.cumsum(good, 1) - 1
        use_row, use_column = np.nonzero(good & (place < count))
        chosen[rows[use_row], place[use_row, use_column]] = items[use_row, use_column]
        filled[rows] += np.minimum(good.sum(1), count - filled[rows])
        rows = rows[filled[rows] < count]
        if not len(rows):
            return chosen
    every = np.arange(1, num_items + 1) if pool is None else pool
    items, weights = np.unique(every, return_counts=True)
    most = max(1, _RACE_CELLS // max(1, len(items)))
    for start in range(0, len(rows), most):
        part = rows[start : start + most]
        allowed = np.ones((len(part), num_items + 1), bool)
        for place, row in enumerate(part):
            allowed[place, touched.up_to(int(user[row]), int(time[row]))] = False
            allowed[place, chosen[row]] = False
        allowed[np.arange(len(part)), target[part]] = False
        chosen[part] = _race(
            items, weights, allowed[:, items], random_streams.keys(key[part], _ROUNDS), chosen[part]
        )
    return chosen


def _race(
    items: np.ndarray,
    weights: np.ndarray,
    allowed: np.ndarray,
    key: np.ndarray,
    chosen: np.ndarray,
) -> np.ndarray:
    """Fills the zeros of `chosen` int32 [n, count] from the items that are left; or empties it.

    Args:
      items, weights: [m], the items to draw and how often each is in the pool.
      allowed: bool [n, m].
      key: uint64 [n].
    """
    arrival = np.where(allowed, random_streams.exponentials(key, items) / weights, np.inf)
    count = chosen.shape[1]
    first = np.argsort(arrival, axis=1, kind="stable")[:, :count]
    left = np.take_along_axis(allowed, first, 1).sum(1)
    filled = (chosen > 0).sum(1)
    result = np.zeros_like(chosen)
    for row in np.flatnonzero(filled + left >= count):
        drawn = items[first[row, : count - filled[row]]]
        result[row] = np.concatenate([chosen[row, : filled[row]], drawn])
    return result


def _repeats(items: np.ndarray) -> np.ndarray:
    """Tells where a value of a row [n, m] has occurred earlier in it, bool [n, m]."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, 1)
    repeated = np.zeros(items.shape, bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    result = np.empty_like(repeated)
    np.put_along_axis(result, order, repeated, 1)
    return result


def evaluation_candidates(
    log: Log,
    splits: Splits,
    split: str,
    protocol: str,
    seed: int,
    directory: str,
    *,
    cache_dir: str = "",
    task: str = "recommendation",
    segmenter: str = "characters",
    drawn_rows: int = 16_384,
) -> np.ndarray:
    """Returns the saved candidate lists of a split; drawn once, shared by every model.

    Args:
      split: 'validation' or 'test'.
      protocol: 'neg99' draws uniformly, 'neg99pop' from all clicks that train with multiplicity,
        first clicks of users among them; 'published99' takes the lists that came with the data;
        'bm25_99', of searches, takes the items nearest to the query. No protocol
        takes as a negative what the user touched up to the example, other clicks of the same search
        among it.
      seed: of the draw.
      directory: where the lists and their hash are kept, the prepared log's folder.
      cache_dir: where they are kept where that folder cannot be written (`place_beside`). The draw
        depends on the log and the seed alone, so lists in two caches are equal.
      task: 'recommendation', or 'search': the examples of `held_out_searches`.
      segmenter: of the items' texts, as the log's queries were split.
      drawn_rows: examples whose negatives are drawn at once.

    Returns:
      int32 [E, 100], the target in column 0; as many as were published for 'published99'. The rows
      of users to whom fewer than 99 items are left hold zeros after the target (`ranked`).

    Raises:
      UserError: an unknown protocol, lists that do not match their hash, a folder that cannot be
        written.
    """
    if protocol == PUBLISHED and task == "recommendation":
        return _published_lists(log, splits, split)
    known = (*PROTOCOLS, BM25) if task == "search" else PROTOCOLS
    if protocol not in known:
        raise UserError(
            f"expected a protocol of {', '.join(known)} for {task}, found {protocol!r}; pass "
            "one of them"
        )
    examples: Examples = getattr(splits, split)
    number, prefix = ("validation", "test").index(split), ""
    if task == "search":
        examples = held_out_searches(log, splits, split)
        # Streams apart from those of the clicks.
        number, prefix = number + 2, "search-"
    target, times = targets(log, examples)
    what = np.ascontiguousarray(examples.target_row).tobytes()
    if task == "search":
        what += np.ascontiguousarray(target).tobytes()
    rows = hashlib.sha256(what).hexdigest()[:12]
    name = f"{prefix}{splits.name}-{split}-{protocol}-v{_VERSION}-seed{seed}-{rows}"
    # The JSON is written last: where it stands, the lists are whole.
    described = place_beside(name + ".json", directory, cache_dir)
    stem = described.removesuffix(".json")
    if os.path.exists(described):
        return _read_lists(stem)
    if protocol == BM25:
        index = ItemTextIndex(log.item_texts(), segmenters.segmenter(segmenter), seed)
        queries = [log.query(int(row)) for row in examples.target_row]
        touched = TouchedItems(log)
        pairs = zip(examples.user.tolist(), times.tolist(), strict=True)
        left_out = [touched.up_to(user, time) for user, time in pairs]
        negatives = nearest_negatives(index, queries, target, left_out, _NEGATIVES)
    else:
        clicks = np.asarray(log.rec_items)[splits.training_rows]
        pool = clicks if protocol == "neg99pop" else None
        keys = _keys(seed, number, examples)
        negatives = _drawn(log, examples, target, times, keys, pool, drawn_rows)
    lists = np.concatenate([target[:, None], negatives], 1)
    try:
        _write_lists(stem, lists)
    except OSError as error:
        raise UserError(
            f"expected to write candidate lists into {os.path.dirname(stem)}, found "
            f"{error.strerror or error}; free space or make the folder writable"
        ) from error
    return lists


def _keys(seed: int, number: int, examples: Examples) -> np.ndarray:
    if isinstance(examples, SearchExamples):
        return random_streams.keys(seed, number, examples.target_row, examples.item)
    return random_streams.keys(seed, number, examples.target_row)


def _drawn(
    log: Log,
    examples: Examples,
    target: np.ndarray,
    times: np.ndarray,
    keys: np.ndarray,
    pool: np.ndarray | None,
    rows: int,
) -> np.ndarray:
    touched = TouchedItems(log)
    negatives = np.empty((len(examples), _NEGATIVES), np.int32)
    # In parts, because the draws of a large test split would take gigabytes.
    for start in range(0, len(examples), rows):
        part = slice(start, start + rows)
        negatives[part] = draw_negatives(
            touched,
            log.num_items,
            user=examples.user[part],
            time=times[part],
            target=target[part],
            count=_NEGATIVES,
            key=keys[part],
            pool=pool,
        )
    return negatives


def _published_lists(log: Log, splits: Splits, split: str) -> np.ndarray:
    """Returns the target and its published negatives, int32 [E, 1 + N]."""
    if splits.name != "published" or f"{split}_negatives" not in log.published:
        raise UserError(
            f"expected data.split=published and data with negatives of its own for published99, "
            f"found {splits.name} of {log.name}; use neg99"
        )
    rows = np.asarray(log.published[f"{split}_target_row"])
    wanted = getattr(splits, split).target_row
    order = np.argsort(rows, kind="stable")
    place = order[np.searchsorted(rows[order], wanted)]
    negatives = np.asarray(log.published[f"{split}_negatives"])[place]
    return np.concatenate([np.asarray(log.rec_items)[wanted][:, None], negatives], 1)


def _digest(lists: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(lists).data).hexdigest()[:16]


def _write_lists(stem: str, lists: np.ndarray) -> None:
    save_npy(stem + ".npy", lists)
    folder, name = os.path.split(stem + ".npy")
    described = {"hash": _digest(lists), "files": checksums.describe(folder, [name])}
    checksums.write_sealed(stem + ".json", described)


def _read_lists(stem: str) -> np.ndarray:
    remedy = f"remove {stem}.json to draw them again with the same seed"
    described = checksums.read_sealed(stem + ".json", "candidate lists", remedy)
    checksums.check(os.path.dirname(stem), described.get("files"), remedy)
    lists = load_npy(stem + ".npy", "candidate lists", remedy)
    if _digest(lists) != described.get("hash"):
        raise UserError(
            f"expected candidate lists with the saved hash in {stem}.npy, found others; {remedy}"
        )
    return lists


def ranked(lists: np.ndarray) -> np.ndarray:
    """Tells which examples of saved lists [E, N] have negatives, bool [E].

    Sampled protocols leave out the others, whose users have touched nearly all items.
    """
    return lists[:, 1] > 0


def who_lack(log: Log, users: np.ndarray, count: int) -> str:
    """Names the first few of the users to whom fewer than `count` items are left as negatives.

    Args:
      users: of the examples, [E]; a user may have several.
    """
    different = np.unique(users)
    names = ", ".join(repr(str(log.user_ids[user])) for user in different[:_NAMED])
    more = f" and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
    them = "user" if len(different) == 1 else "users"
    return f"{them} {names}{more} touched all but fewer than {count} of {log.num_items} items"


def seen_items(log: Log, examples: Examples) -> np.ndarray:
    """Lists the items that a ranking of the whole catalogue leaves out for each example.

    These are the items that its user touched strictly before it and the other clicks of its search,
    each of which is a target of its own. The target itself is never left out.

    Returns:
      int32 [E, S], 0 padded.
    """
    touched = TouchedItems(log)
    items, times = targets(log, examples)
    rows = zip(examples.user.tolist(), times.tolist(), strict=True)
    before = [touched.of_user(user, earlier_than=time) for user, time in rows]
    beside = other_clicks(log, examples)
    return _padded(
        [
            np.union1d(seen[seen != item], others[others > 0])
            for seen, others, item in zip(before, beside, items, strict=True)
        ]
    )


def other_clicks(log: Log, examples: Examples) -> np.ndarray:
    """Lists the other clicks of each target's search, int32 [E, S], 0 padded.

    Examples of recommendation have none.
    """
    if not isinstance(examples, SearchExamples):
        return np.zeros((len(examples), 1), np.int32)
    ends = log.click_offsets
    rows = zip(examples.target_row.tolist(), examples.item.tolist(), strict=True)
    clicks = ((log.click_items[ends[row] : ends[row + 1]], item) for row, item in rows)
    return _padded([np.unique(clicked[clicked != item]) for clicked, item in clicks])


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    """Returns int32 [E, S]: the rows one below the other, zero-padded to one column at least."""
    width = max((len(items) for items in rows), default=0) or 1
    padded = np.zeros((len(rows), width), np.int32)
    for row, items in enumerate(rows):
        padded[row, : len(items)] = items
    return padded
