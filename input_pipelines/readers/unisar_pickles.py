"""Reads UniSAR's published pickles (Shi et al., SIGIR 2024): KuaiSAR or Amazon, split already.

    vocab/user_vocab.pkl            {user: {rec_his, rec_his_ts, src_session_his, ..._ts}}
    vocab/src_session_vocab_np.pkl  {keyword [n, 50], pos_items [n, 5]}; row 0 and value 0 pad
    vocab/item_vocab_np.pkl         {column: array of n rows}; row 0 pads
    dataset/rec_train.pkl, rec_val.pkl, rec_test.pkl
                                    user_id, item_id, neg_items, rec_his, src_session_his

A user's lists become the log, in their own order. The frames become the split 'published': a
target is the click at place rec_his of its user's list, its history the first rec_his clicks and
src_session_his sessions, less those at the target's own time or later: histories are strictly
earlier here. A session with neither words nor clicks is no event: it is left out of the lists, and
src_session_his counts those that are left. Published negatives of the validation and test parts are
the lists 'published99'; those of training are drawn anew. The search task's frames (src_*) are not
read.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from core.errors import UserError
from input_pipelines import times
from input_pipelines.empty_searches import count_left_out, with_content
from input_pipelines.log import (
    Log,
    content_hash,
    laid_out_names,
    take_ragged,
)
from input_pipelines.names import lay_out, lay_out_numbers
from input_pipelines.readers.csv_blocks import Report, silent
from input_pipelines.readers.restricted_pickle import load_pickle
from input_pipelines.splits import history_ends

_LOG = logging.getLogger(__name__)

# Users with events and items of the published KuaiSAR.
KUAISAR = {"users": 22_699, "items": 673_415}
_VOCABULARIES = ("user_vocab", "src_session_vocab_np", "item_vocab_np")
_PARTS = {"train": "train", "validation": "val", "test": "test"}
_LISTS = ("rec_his", "rec_his_ts", "src_session_his", "src_session_his_ts")
# Numbers of words; the log has a row for each up to the largest.
_MOST_WORDS = 2**24
_COLUMNS = ("user_id", "item_id", "neg_items", "rec_his", "src_session_his")


def raw_files(data_dir: str) -> list[pathlib.Path]:
    """Lists the files that are read. Raises UserError where one is missing."""
    root = pathlib.Path(data_dir)
    paths = [root / "vocab" / f"{name}.pkl" for name in _VOCABULARIES]
    paths += [root / "dataset" / f"rec_{part}.pkl" for part in _PARTS.values()]
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"expected {path.relative_to(root)} in {data_dir}, found no such file; pass the "
                "folder KuaiSAR or Amazon of UniSAR's data, with vocab and dataset in it"
            )
    return paths


def read_unisar(
    data_dir: str, *, report: Report = silent, published_counts: Mapping[str, int] = KUAISAR
) -> Log:
    """Reads the folder into a log with its published split.

    Args:
      report: told what is being read and the share of it done.
      published_counts: of users and items of the whole data set; a folder with one of them must
        have both.

    Raises:
      UserError: a file is missing or cut short, holds anything but data, or lacks what the module
        lists; names the row of a target that is not where its prefix length says.
    """
    paths = raw_files(data_dir)
    report("unpickling", 0.0)
    users, sessions, items = (load_pickle(path) for path in paths[:3])
    log, lists = _read_log(paths, users, sessions, items, published_counts)
    published: dict[str, np.ndarray] = {}
    for number, (part, path) in enumerate(zip(_PARTS, paths[3:], strict=True)):
        report("unpickling", (3 + number) / len(paths))
        published |= _read_part(part, path, log, lists)
    log = dataclasses.replace(log, published=published)
    return dataclasses.replace(log, hash=content_hash(log))


def _wrong(path: pathlib.Path, expected: str, found: object) -> UserError:
    # Of a list of millions the first few: its whole text takes more memory than it does.
    long = isinstance(found, list | tuple | dict | np.ndarray)
    text = " ".join((reprlib.repr(found) if long else str(found)).split())[:80]
    return UserError(f"expected {expected} in {path}, found {text}; use the file as published")


def _whole(values: Any, path: pathlib.Path, what: str) -> np.ndarray:
    """Returns whole numbers stored in any numeric type as int64."""
    try:
        array = np.asarray(values)
        with np.errstate(invalid="ignore"):  # NaN, which differs from what it becomes
            whole = array.astype(np.int64)
        if array.size and (array.dtype.kind not in "iuf" or not np.array_equal(whole, array)):
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        raise _wrong(path, f"whole numbers as {what}", values) from None
    return whole


def _has_rows(values: Any) -> bool:
    """Tells a list or array from the single values that a pickle may hold in its place."""
    if isinstance(values, np.ndarray):
        return values.ndim > 0
    return isinstance(values, list | tuple | pd.Series)


def _check_range(values: np.ndarray, most: int, path: pathlib.Path, what: str) -> None:
    """Checks that numbers, 0 for padding, fit the log's 32 bits and what they count."""
    if values.size and (values.min() < 0 or values.max() > most):
        worst = values.min() if values.min() < 0 else values.max()
        raise _wrong(path, f"{what} from 0 to {most}", int(worst))


def _flat(users: dict, name: str, path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns (offsets [U+2], values) of one list of every user; the log's user 0 has none."""
    parts = [_whole(user[name], path, name).reshape(-1) for user in users.values()]
    lengths = np.array([0, *map(len, parts)], np.int64)
    values = np.concatenate([np.zeros(0, np.int64), *parts])
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), values


@dataclasses.dataclass(frozen=True)
class _SessionLists:
    """Holds the sessions of all users as published, S of them.

    Attributes:
      offsets: int64 [U+2], where each user's begin.
      kept_before: int64 [S+1], how many of the first s sessions are in the log.
    """

    offsets: np.ndarray
    kept_before: np.ndarray


def _read_log(
    paths: list[pathlib.Path], users: Any, sessions: Any, items: Any, whole: Mapping[str, int]
) -> tuple[Log, _SessionLists]:
    users_path, sessions_path, items_path = paths[:3]
    if not isinstance(users, dict) or not all(
        isinstance(user, dict)
        and set(_LISTS) <= set(user)
        and all(_has_rows(user[name]) for name in _LISTS)
        for user in users.values()
    ):
        raise _wrong(users_path, f"a dict of users with {', '.join(_LISTS)}", type(users).__name__)
    tables = ("keyword", "pos_items")
    if not isinstance(sessions, dict) or not all(_has_rows(sessions.get(name)) for name in tables):
        raise _wrong(sessions_path, "a dict with keyword and pos_items", type(sessions).__name__)
    if not isinstance(items, dict) or not items or not all(map(_has_rows, items.values())):
        raise _wrong(items_path, "a dict of columns", type(items).__name__)
    # The key of padding, where there is one, has empty lists.
    users = {name: user for name, user in users.items() if any(len(user[n]) for n in _LISTS)}
    names = _whole(list(users), users_path, "users")
    order = np.argsort(names)
    users_in_order = {name: users[name] for name in np.array(list(users), object)[order]}
    rec_offsets, rec_items = _flat(users_in_order, "rec_his", users_path)
    time_offsets, rec_times = _flat(users_in_order, "rec_his_ts", users_path)
    search_offsets, rows = _flat(users_in_order, "src_session_his", users_path)
    search_time_offsets, search_times = _flat(users_in_order, "src_session_his_ts", users_path)
    for ours, theirs in ((rec_offsets, time_offsets), (search_offsets, search_time_offsets)):
        if not np.array_equal(ours, theirs):
            raise _wrong(users_path, "one time an event of each user", "lists of other lengths")
    for some, offsets, name in (
        (rec_times, rec_offsets, "rec_his_ts"),
        (search_times, search_offsets, "src_session_his_ts"),
    ):
        owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        falls = np.flatnonzero((np.diff(some) < 0) & (np.diff(owner) == 0))
        if len(falls):
            user = names[order][owner[falls[0]] - 1]
            raise _wrong(users_path, f"{name} in time order", f"an earlier time after for {user}")
    words = _whole(sessions["keyword"], sessions_path, "keyword")
    clicked = _whole(sessions["pos_items"], sessions_path, "pos_items")
    if len(rows) and (rows.min() < 0 or rows.max() >= min(len(words), len(clicked))):
        raise _wrong(sessions_path, f"sessions up to {rows.max()}", f"{len(words)} rows")
    num_items = max(len(column) for column in items.values()) - 1
    _check_range(words, _MOST_WORDS, sessions_path, "keyword")
    _check_range(clicked, num_items, sessions_path, "pos_items")
    if not len(rec_items):
        raise _wrong(users_path, "clicks in rec_his", "none")
    has_content = with_content(_unpadded(words, rows)[0], _unpadded(clicked, rows)[0])
    kept_before = np.concatenate([[0], np.cumsum(has_content)]).astype(np.int64)
    word_offsets, word_ids = _unpadded(words, rows[has_content])
    click_offsets, click_items = _unpadded(clicked, rows[has_content])
    counts = {"users": len(users), "items": num_items}
    _check_counts(counts, whole, users_path.parent.parent)
    if rec_items.min() < 1 or rec_items.max() > num_items:
        raise _wrong(users_path, f"items from 1 to {num_items}", int(rec_items.max()))
    log = Log(
        name="unisar_pickles",
        is_sample=False,
        **laid_out_names(
            lay_out(map(str, names[order].tolist())),
            lay_out_numbers(np.arange(1, num_items + 1)),
            lay_out_numbers(np.arange(1, int(words.max(initial=0)) + 1)),
        ),
        rec_offsets=rec_offsets,
        rec_items=rec_items.astype(np.int32),
        rec_times=rec_times,
        search_offsets=kept_before[search_offsets],
        search_times=search_times[has_content],
        word_offsets=word_offsets,
        word_ids=word_ids,
        click_offsets=click_offsets,
        click_items=click_items,
        time_unit=times.unit_of(rec_times, search_times),
        reading=count_left_out(has_content),
    )
    return log, _SessionLists(search_offsets, kept_before)


def _check_counts(
    counts: Mapping[str, int], whole: Mapping[str, int], data_dir: pathlib.Path
) -> None:
    wrong = [f"{n} {counts[n]:,} (of {whole[n]:,})" for n in whole if counts[n] != whole[n]]
    if wrong and len(wrong) < len(whole):
        raise UserError(
            f"expected the counts of UniSAR's KuaiSAR in {data_dir}, which matches it otherwise, "
            f"found {', '.join(wrong)}; download the files again"
        )


def _unpadded(table: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (offsets, values int32) of what is not 0 in the given rows of [n, width]."""
    table = table.reshape(len(table), -1)
    ends = np.concatenate([[0], np.cumsum((table != 0).sum(1))]).astype(np.int64)
    offsets, places = take_ragged(ends, rows)
    return offsets, table[table != 0][places].astype(np.int32)


def _read_part(
    part: str, path: pathlib.Path, log: Log, lists: _SessionLists
) -> dict[str, np.ndarray]:
    """Reads the arrays of `Log.published` of one part."""
    frame = load_pickle(path)
    if not isinstance(frame, pd.DataFrame) or set(_COLUMNS) - set(frame.columns):
        raise _wrong(path, f"a frame with {', '.join(_COLUMNS)}", type(frame).__name__)
    user, item, clicks, searches = (
        _whole(frame[n].to_numpy(), path, n) for n in ("user_id", "item_id", *_COLUMNS[3:])
    )
    names = np.array([int(name) for name in log.user_ids.tolist()[1:]], np.int64)
    place = np.minimum(np.searchsorted(names, user), max(len(names) - 1, 0))
    unknown = np.flatnonzero(names[place] != user) if len(names) else np.arange(len(user))
    if len(unknown):
        raise _wrong(path, "users of user_vocab.pkl", f"{user[unknown[0]]} in row {unknown[0] + 1}")
    number = place + 1
    # Compared before they are added: the sum of large ones is a small number.
    inside = (clicks >= 0) & (clicks < (log.rec_offsets[number + 1] - log.rec_offsets[number]))
    target_row = log.rec_offsets[number] + np.where(inside, clicks, 0)
    there = inside & (log.rec_items[np.where(inside, target_row, 0)] == item)
    if not there.all():
        row = int(np.flatnonzero(~there)[0])
        raise _wrong(
            path,
            f"item {item[row]} of row {row + 1} at place {clicks[row]} of its user's rec_his",
            log.rec_items[target_row[row]] if inside[row] else "a list that ends before",
        )
    if np.any((searches < 0) | (searches > lists.offsets[number + 1] - lists.offsets[number])):
        raise _wrong(path, "src_session_his within the user's list", "a longer prefix")
    shown = lists.offsets[number] + searches
    earlier = history_ends(log, target_row)
    rec_end = np.minimum(target_row, earlier[0])
    shown = lists.kept_before[shown]
    search_end = np.minimum(shown, earlier[1])
    cut = int((rec_end < target_row).sum())
    cut += int((search_end < shown).sum())
    if cut:
        _LOG.info("%s: cut %d histories to what is strictly earlier than the target", part, cut)
    arrays = {"target_row": target_row, "rec_end": rec_end, "search_end": search_end}
    if part != "train":
        arrays["negatives"] = _negatives(frame, item, path, log.num_items)
    return {f"{part}_{name}": array for name, array in arrays.items()}


def _negatives(
    frame: pd.DataFrame, item: np.ndarray, path: pathlib.Path, num_items: int
) -> np.ndarray:
    try:
        table = np.array([np.asarray(row) for row in frame["neg_items"]]).reshape(len(frame), -1)
    except ValueError:
        raise _wrong(path, "as many neg_items in every row", "rows of other lengths") from None
    table = _whole(table, path, "neg_items")
    wrong = (table < 1) | (table > num_items) | (table == item[:, None])
    if wrong.any():
        row, column = (int(a[0]) for a in np.nonzero(wrong))
        raise _wrong(
            path,
            f"neg_items from 1 to {num_items} beside the target",
            f"{table[row, column]} in row {row + 1}",
        )
    return table.astype(np.int32)
