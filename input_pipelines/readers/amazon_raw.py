"""Reads Amazon reviews of any category, with semi-synthetic searches, from the raw files.

    reviews_X_5.json.gz   one review a line: reviewerID, asin, unixReviewTime, ...
    meta_X.json.gz        one item a line, a Python dict literal: asin, title, description, ...
    query_text.txt.gz     one query a line, the first is number 0   (Amazon-Product-Search)
    train.qrels.gz, test.qrels.gz    REVIEWER_QUERY 0 ASIN 1        (Amazon-Product-Search)

The recipe of GenSAR and UniSAR: recommendation clicks are all reviews of items that have
metadata; a review whose (user, item) has queries is also a search with one of them, chosen by
seed, and the reviewed item clicked; users need both. An item's text is its title and description,
as far as it has them (GenSAR 3.2.1); never its categories, for a query IS a category path.

Review times are whole days, so the time of an event is its position in the user's sequence, reviews
of one day in the order of a hash. The two faces of a review share their position: the history of
either (what is strictly earlier) holds no face of it. This departs from the released notebooks,
which split each task apart and so leave a held-out purchase's other face in histories.
"""

from __future__ import annotations

import ast
import gzip
import json
import logging
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from core.errors import UserError
from core.text_lines import lines_of
from input_pipelines import ids, random_streams
from input_pipelines.log import Log, RawEvents, build_log, tie_break
from input_pipelines.readers.csv_blocks import Report, silent

# The longest Python literal that is parsed: its tree takes hundreds of bytes a character.
_LITERAL_CHARACTERS = 2**20
_LOG = logging.getLogger(__name__)

_PATTERNS = ("reviews_*_5.json.gz", "meta_*.json.gz")
_TEXT_KEYS = ("title", "description")
_QUERIES = ("query_text.txt.gz", "train.qrels.gz", "test.qrels.gz")
_MOST_DIGITS = 18
# Lines, and characters, that a gz file of any size may unpack to, and that each byte of it
# justifies: a kilobyte can hold a million empty lines.
_FREE_LINES, _LINES_A_BYTE = 2**20, 1
_FREE_CHARACTERS, _CHARACTERS_A_BYTE = 2**26, 50
_REPORT_LINES = 10_000


def raw_files(data_dir: str) -> list[pathlib.Path]:
    """Lists reviews, meta, queries, qrels. Raises UserError where one is missing or not alone."""
    root = pathlib.Path(data_dir)
    files = []
    for pattern in _PATTERNS:
        paths = sorted(root.glob(pattern))
        if len(paths) != 1:
            names = ", ".join(path.name for path in paths) or "none"
            raise UserError(
                f"expected one file {pattern} in {data_dir}, found {names}; keep one category a "
                "folder"
            )
        files.append(paths[0])
    if files[1].name != f"meta_{_category(files[0])}.json.gz":
        raise UserError(
            f"expected reviews and metadata of one category in {data_dir}, found {files[0].name} "
            f"and {files[1].name}; keep one category a folder"
        )
    for name in _QUERIES:
        if not (root / name).is_file():
            raise UserError(
                f"expected {name} in {data_dir}, found no such file; take it from "
                "Amazon-Product-Search"
            )
        files.append(root / name)
    return files


def _category(reviews: pathlib.Path) -> str:
    return reviews.name.removeprefix("reviews_").removesuffix("_5.json.gz")


def _lines(path: pathlib.Path, report: Report) -> Iterator[tuple[int, str]]:
    """Yields the lines of a gz file without their ends, numbered from 1."""
    size = max(path.stat().st_size, 1)
    try:
        with (
            open(path, "rb") as packed,
            gzip.open(packed, "rt", encoding="utf-8", newline="\n") as file,
        ):
            characters = _FREE_CHARACTERS + _CHARACTERS_A_BYTE * size
            lines = _FREE_LINES + _LINES_A_BYTE * size
            for number, line in enumerate(lines_of(file), 1):
                characters -= len(line)
                if characters < 0 or number > lines:
                    raise UserError(
                        f"expected at most {lines:,} lines and {_CHARACTERS_A_BYTE} characters a "
                        f"byte in {path}, of {size:,} bytes, found more; use the file as published"
                    )
                if number % _REPORT_LINES == 0:
                    report(path.name, packed.tell() / size)
                yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise UserError(
            f"expected a whole gz file of UTF-8 text at {path}, found one that ends or breaks "
            f"early ({error}); download it again"
        ) from error


def _malformed(path: pathlib.Path, number: int, expected: str, line: str) -> UserError:
    return UserError(
        f"expected {expected} in line {number} of {path}, found {line[:60]!r}; use the file as "
        "published"
    )


def _record(
    path: pathlib.Path,
    number: int,
    line: str,
    keys: Mapping[str, Callable[[Any], Any]],
    texts: Sequence[str] = (),
) -> list:
    """Returns the values of `keys` in one line, JSON or a Python literal; executes nothing.

    The values of `texts` follow: keys of text that a line need not have.
    """
    try:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            if len(line) > _LITERAL_CHARACTERS:
                raise
            record = ast.literal_eval(line)
        values = [convert(record[key]) for key, convert in keys.items()]
        return values + [_optional_text(record.get(key)) for key in texts]
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        expected = f"a dict with {', '.join(keys)}"
        if texts:
            expected += f", and {', '.join(texts)} as text where it has them,"
        raise _malformed(path, number, expected, line) from None


def _optional_text(value: Any) -> str:
    """Returns a text on one line, '' of None. Raises TypeError where the value is no text."""
    if value is not None and not isinstance(value, str):
        raise TypeError
    return " ".join(ids.whole_text(value or "").split())


def _item_texts(path: pathlib.Path, report: Report) -> dict[str, str]:
    """Reads the text of every item that has metadata."""
    texts = {}
    for number, line in _lines(path, report):
        item, *parts = _record(path, number, line, {"asin": ids.of_value}, _TEXT_KEYS)
        texts[item] = " ".join(part for part in parts if part)
    return texts


def _reviews(path: pathlib.Path, known: set[str], report: Report) -> pd.DataFrame:
    """Reads user, item and position of the reviews of known items, in order."""
    users, items, days = [], [], []
    keys = {
        "reviewerID": ids.of_value,
        "asin": ids.of_value,
        "unixReviewTime": ids.number_of,
    }
    for number, line in _lines(path, report):
        user, item, day = _record(path, number, line, keys)
        users.append(user)
        items.append(item)
        days.append(day)
    frame = pd.DataFrame({"user": users, "item": items, "day": np.asarray(days, np.int64)})
    listed = frame["item"].isin(known)
    if not listed.all():
        _LOG.info("left out %d reviews of items without metadata", int((~listed).sum()))
    frame = frame[listed].drop_duplicates()
    frame["tie"] = tie_break(frame["item"])
    frame = frame.sort_values(["user", "day", "tie"], ignore_index=True)
    frame["position"] = frame.groupby("user").cumcount()
    return frame


def _qrels(paths: list[pathlib.Path], num_queries: int, report: Report) -> pd.DataFrame:
    """Reads the distinct (user, item, query) of the files."""
    rows: list[tuple[str, str, int]] = []
    for path in paths:
        for number, line in _lines(path, report):
            fields = line.split()
            user, _, query = fields[0].rpartition("_") if fields else ("", "", "")
            if len(fields) != 4 or not user or not (query.isascii() and query.isdecimal()):
                raise _malformed(path, number, "REVIEWER_QUERY 0 ASIN 1", line)
            if len(query) > _MOST_DIGITS or int(query) >= num_queries:
                raise _malformed(path, number, f"a query number below {num_queries}", line)
            rows.append((user, fields[2], int(query)))
    return pd.DataFrame(rows, columns=["user", "item", "query"]).drop_duplicates()


def _choose(qrels: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Chooses one query for each (user, item), whatever the order of the rows."""
    ordered = qrels.sort_values(["user", "item", "query"], ignore_index=True)
    groups = ordered.groupby(["user", "item"], sort=False)
    count = groups["query"].transform("size").to_numpy()
    keys = random_streams.keys(seed, tie_break(ordered["user"]), tie_break(ordered["item"]))
    # Any number below 2^32 serves each pair's own count of queries.
    draws = random_streams.below(keys, 1, 2**32)[:, 0] if len(keys) else np.zeros(0, np.int64)
    return ordered[groups.cumcount().to_numpy() == draws % np.maximum(count, 1)]


def read_amazon_raw(data_dir: str, *, report: Report = silent, query_seed: int = 0) -> Log:
    """Reads the folder into a log; times are positions, from 0.

    Args:
      query_seed: of the choice among the queries of a user and an item.
      report: told which file is being read and the share of it done.

    Raises:
      UserError: a file is missing or cut short, a line malformed (named), no user has both.
    """
    reviews, meta, query_texts, *qrels = raw_files(data_dir)
    item_texts = _item_texts(meta, report)
    events = _reviews(reviews, set(item_texts), report)
    queries = [line.split() for _, line in _lines(query_texts, report)]
    chosen = _choose(_qrels(qrels, len(queries), report), query_seed)
    report("matching", 0.0)
    if len(events) and len(chosen):  # pandas gives columns without a row another type
        searches = events.merge(chosen, on=["user", "item"])
        events = events[events["user"].isin(set(searches["user"]))]
    if not (len(events) and len(chosen)):
        raise UserError(
            f"expected users with reviews and queries in {data_dir}, found none; the qrels are of "
            "another category"
        )
    raw = RawEvents(
        click_user=events["user"].tolist(),
        click_item=events["item"].tolist(),
        click_time=events["position"].tolist(),
        search_user=searches["user"].tolist(),
        search_time=searches["position"].tolist(),
        search_words=[queries[query] for query in searches["query"].tolist()],
        search_clicks=[[item] for item in searches["item"].tolist()],
        item_texts=item_texts,
    )
    return build_log(f"amazon_{_category(reviews).lower()}", raw)
