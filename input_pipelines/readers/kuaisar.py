"""Reads KuaiSAR, small or large (Sun et al., CIKM 2023), from its published CSV files.

    rec_inter.csv       user_id, item_id, timestamp, click, ...: one row an impression
    src_inter.csv       user_id, search_session_id, search_session_timestamp, keyword, item_id,
                        click_cnt, ...: one row a result shown in a search session
    item_features.csv   item_id, ...: the catalogue; captions and categories are not read

A click event is a row of rec_inter with click > 0. A search event is a session: its words, the
items with click_cnt > 0, at the session's own time, which is that of its start; the clicks in it
have none. Sessions without a click, four in ten, stay as their query alone. Rows that share user
and session number but not time or keyword are different sessions.

`timestamp` is when a batch was sent: several impressions share it, so that a target's history,
strictly earlier, never holds another item of its batch. Times are in milliseconds.

Item numbers are one space for every item_type: a clicked user profile or live stream is an item
like a video. Items that are only shown, or only listed in item_features, are in the catalogue,
and so is an item of the interactions that item_features does not list: the features are not used,
so nothing is missing from it. Words are anonymous numbers; language models cannot read them.
"""

from __future__ import annotations

import functools
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.errors import UserError
from input_pipelines.log import Log, take_ragged
from input_pipelines.numbered_events import NumberedEvents, build_numbered_log
from input_pipelines.readers import csv_blocks
from input_pipelines.readers.csv_blocks import ID, TEXT, TIME, Report, silent

_LOG = logging.getLogger(__name__)
_ReadBlocks = Callable[[pathlib.Path, Mapping[str, pa.DataType]], Iterator[csv_blocks.Block]]

SAMPLE_MARK = "SAMPLE"
_FILES = ("rec_inter.csv", "src_inter.csv", "item_features.csv")
# LCR-SER, Table 1: users, rows of the two interaction files, items, distinct keywords.
FULL_COUNTS = {
    "small": {
        "users": 25_877,
        "rec_inter": 7_493_101,
        "src_inter": 3_171_231,
        "items": 4_195_529,
        "queries": 267_608,
    },
    "large": {
        "users": 25_877,
        "rec_inter": 14_605_716,
        "src_inter": 5_059_169,
        "items": 6_890_707,
        "queries": 453_667,
    },
}
_KEYWORD = r"^(\[\s*(\d+\s*(,\s*\d+\s*)*)?\])?$"


def raw_files(data_dir: str) -> list[pathlib.Path]:
    """Lists the files that are read. Raises UserError where one is missing."""
    root = pathlib.Path(data_dir)
    for name in _FILES:
        if not (root / name).is_file():
            raise UserError(
                f"expected {name} in {data_dir}, found no such file; pass the folder that holds "
                f"{', '.join(_FILES)}"
            )
    mark = root / SAMPLE_MARK
    return [root / name for name in _FILES] + ([mark] if mark.exists() else [])


def read_kuaisar(
    data_dir: str, *, report: Report = silent, block_bytes: int = csv_blocks.BLOCK_BYTES
) -> Log:
    """Reads the folder into a log.

    Args:
      report: told what is being read and the share of it done.
      block_bytes: of a file, read at once.

    Raises:
      UserError: a file or column is missing; a value is no number, a keyword no list (both name
        the row); the full set with wrong counts.
    """
    events, counts = read_events(data_dir, report, block_bytes)
    check_counts(counts, data_dir)
    report("sorting", 0.0)
    is_sample = (pathlib.Path(data_dir) / SAMPLE_MARK).exists()
    log = build_numbered_log("kuaisar", events, is_sample=is_sample)
    report("sorting", 1.0)
    return log


def read_events(
    data_dir: str, report: Report = silent, block_bytes: int = csv_blocks.BLOCK_BYTES
) -> tuple[NumberedEvents, dict[str, int]]:
    """Reads the folder's events, and counts what it holds by the names of `FULL_COUNTS`.

    Raises:
      UserError: as `read_kuaisar`, which also checks the counts.
    """
    read = functools.partial(csv_blocks.read_blocks, report=report, block_bytes=block_bytes)
    recommendations, searches, features = raw_files(data_dir)[:3]
    clicks, shown, users, rec_rows = _read_recommendations(recommendations, read)
    sessions = _Sessions(searches, read)
    listed = np.concatenate(
        [
            np.zeros(0, np.int64),
            *(block.columns["item_id"] for block in read(features, {"item_id": ID})),
        ]
    )
    items = np.unique(np.concatenate([listed, shown, sessions.shown]))
    counts = {
        "users": len(np.union1d(users, sessions.users)),
        "rec_inter": rec_rows,
        "src_inter": sessions.rows,
        "items": len(items),
        "queries": sessions.num_queries,
    }
    events = NumberedEvents(
        click_user=clicks[0],
        click_item=clicks[1],
        click_time=clicks[2],
        search_user=sessions.user,
        search_time=sessions.time,
        word_ends=sessions.word_ends,
        word_values=sessions.words,
        search_click_ends=sessions.click_ends,
        search_click_values=sessions.clicks,
        items=items,
        time_unit="milliseconds",
    )
    return events, counts


def check_counts(counts: dict[str, int], data_dir: str) -> str | None:
    """Returns which published set this is, 'small' or 'large', or None.

    Raises:
      UserError: a count beside the users' is that of a published set, another is not.
    """
    for scale, published in FULL_COUNTS.items():
        wrong = [
            f"{n} {counts[n]:,} (of {published[n]:,})"
            for n in published
            if counts[n] != published[n]
        ]
        # Both sets have the same users, so that these tell nothing apart.
        if not any(counts[n] == published[n] for n in published if n != "users"):
            continue
        if wrong:
            raise UserError(
                f"expected the counts of KuaiSAR-{scale} in {data_dir}, which matches it "
                f"otherwise, found {', '.join(wrong)}; download the files again"
            )
        _LOG.info("%s has all counts of KuaiSAR-%s", data_dir, scale)
        return scale
    _LOG.info("not a whole KuaiSAR: %s", ", ".join(f"{n} {c:,}" for n, c in counts.items()))
    return None


def _read_recommendations(
    path: pathlib.Path, read: _ReadBlocks
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Returns clicks (user, item, time) int64 [3, n], items shown, users, number of rows."""
    columns = {"user_id": ID, "item_id": ID, "timestamp": TIME, "click": ID}
    clicks, shown, users, rows = [np.zeros((3, 0), np.int64)], [], [], 0
    for block in read(path, columns):
        user, item, time, click = (block.columns[name] for name in columns)
        clicked = np.flatnonzero(click > 0)
        clicks.append(np.stack([user[clicked], item[clicked], time[clicked]]))
        shown.append(np.unique(item))
        users.append(np.unique(user))
        rows += len(user)
    return np.concatenate(clicks, axis=1), _all_of(shown), _all_of(users), rows


class _Sessions:
    """Gathers the sessions of src_inter from its rows.

    Attributes:
      user, time: int64 [S].
      word_ends, words: the words of each session, ragged; click_ends, clicks: its clicked items.
      shown, users: the items and users of all rows; rows, num_queries: counts.
    """

    def __init__(self, path: pathlib.Path, read: _ReadBlocks):
        columns = {
            "user_id": ID,
            "search_session_id": ID,
            "search_session_timestamp": TIME,
            "item_id": ID,
            "click_cnt": ID,
            "keyword": TEXT,
        }
        parts: dict[str, list] = {name: [] for name in columns}
        for block in read(path, columns):
            for name, values in block.columns.items():
                parts[name].append(values)
        user, session, time, item, click = (_all_of(parts.pop(n)) for n in list(columns)[:5])
        keyword, keyword_ends, keyword_words = _keywords(parts["keyword"], path)
        self.rows, self.num_queries = len(user), len(keyword_ends) - 1
        self.shown, self.users = np.unique(item), np.unique(user)
        # lexsort is stable: the rows of a session keep the order of the file.
        order = np.lexsort((keyword, time, session, user))
        first = np.zeros(len(order), bool)
        first[:1] = True
        for column in (user, session, time, keyword):
            first[1:] |= column[order[1:]] != column[order[:-1]]
        starts = order[first]
        self.user, self.time = user[starts], time[starts]
        self.word_ends, word_rows = take_ragged(keyword_ends, keyword[starts])
        self.words = keyword_words[word_rows]
        number = np.cumsum(first) - 1
        clicked = np.flatnonzero(click[order] > 0)
        number, item = number[clicked], item[order][clicked]
        firsts = _first_of_pairs(number, item)
        self.clicks = item[firsts]
        counts = np.bincount(number[firsts], minlength=len(starts))
        self.click_ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _keywords(
    parts: list[pa.DictionaryArray], path: pathlib.Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (query of each row, ends [Q+1], words) of the keywords; an empty cell is '[]'.

    Raises:
      UserError: a cell is no list of numbers; names its row.
    """
    if not parts:
        return np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(0, np.int64)
    column = pa.chunked_array(parts).unify_dictionaries()
    texts = column.chunk(0).dictionary
    codes = np.concatenate([c.indices.to_numpy(zero_copy_only=False) for c in column.chunks])
    legal = pc.match_substring_regex(texts, _KEYWORD).to_numpy(zero_copy_only=False)
    if not legal.all():
        row = int(np.flatnonzero(~legal[codes])[0])
        cell = texts[int(codes[row])].as_py()
        raise UserError(
            f"expected a list of word numbers such as [20, 34, 3] in column keyword of {path}, "
            f"found {cell[:60]!r} in row {row + 1}; use the file as published"
        )
    # "[20, 34]" and "[20,34]" are one query.
    plain = pc.replace_substring_regex(texts, r"[\s\[\]]", "")
    plain = pc.dictionary_encode(plain)
    codes = plain.indices.to_numpy(zero_copy_only=False)[codes].astype(np.int64)
    lists = pc.split_pattern(plain.dictionary, ",")
    words = lists.flatten()
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    empty = pc.equal(words, "").to_numpy(zero_copy_only=False)  # '' splits into one ''
    lengths[pc.equal(plain.dictionary, "").to_numpy(zero_copy_only=False)] = 0
    numbers = words.filter(pa.array(~empty)).cast(pa.int64()).to_numpy(zero_copy_only=False)
    return codes, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), numbers


def _first_of_pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the rows, ascending, of the first occurrence of each (first, second)."""
    order = np.lexsort((second, first))
    new = np.ones(len(order), bool)
    new[1:] = (first[order[1:]] != first[order[:-1]]) | (second[order[1:]] != second[order[:-1]])
    return np.sort(order[new])


def _all_of(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
