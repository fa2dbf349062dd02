"""Reads Amazon Beauty with semi-synthetic searches, as prepared for CRS-style experiments.

    sequences.tsv   user TAB items in the order of purchase, separated by spaces
    items.jsonl     {"item": 0, "query_ids": [0], "title": "...", ...}: the catalogue
    queries.tsv     query id TAB text

An item's text is its title, brand and description, as far as it has them; never its categories, for
a query IS the category path of an item. Its facts are title, brand and price, each on its own.

There are no times: the time of a purchase is its position in the user's sequence. A purchase of an
item that has queries is also a search at the same position: the text of one of the item's queries,
chosen by seed, with the item clicked. The two are faces of one event, so that the history of
either (what is strictly earlier) holds no face of it.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np

from core.errors import UserError
from core.text_lines import read_lines
from input_pipelines import ids, random_streams
from input_pipelines.log import Log, RawEvents, build_log

_TEXT_KEYS = ("title", "brand", "description")
_LARGEST_PRICE = 1e12
_FILES = ("sequences.tsv", "items.jsonl", "queries.tsv")


def raw_files(data_dir: str) -> list[pathlib.Path]:
    """Lists the files that are read. Raises UserError where one is missing."""
    paths = [pathlib.Path(data_dir) / name for name in _FILES]
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"expected {path.name} in {data_dir}, found no such file; pass the folder that "
                f"holds {', '.join(_FILES)}"
            )
    return paths


def _lines(path: pathlib.Path) -> list[str]:
    return read_lines(path, f"the lines of {path.name}", "use another copy")


def _malformed(path: pathlib.Path, number: int, expected: str, found: str) -> UserError:
    return UserError(
        f"expected {expected} in line {number} of {path}, found {found[:60]!r}; mend the file"
    )


def _split_line(path: pathlib.Path, number: int, line: str, expected: str) -> tuple[str, str]:
    name, tab, rest = line.partition("\t")
    if not tab or not (name.isascii() and name.isdecimal()):
        raise _malformed(path, number, expected, line)
    return name, rest


def _read_queries(path: pathlib.Path) -> dict[int, list[str]]:
    queries = {}
    for number, line in enumerate(_lines(path), 1):
        name, text = _split_line(path, number, line, "query id TAB text")
        try:
            query = ids.number_of(name)
        except ValueError:
            raise _malformed(path, number, "a query id of at most 18 digits", line) from None
        if query in queries:
            raise _malformed(path, number, "one line a query", name)
        queries[query] = text.split()
    return queries


def _text(record: dict) -> str:
    values = [record.get(name) for name in _TEXT_KEYS]
    parts = (value.strip() for value in values if isinstance(value, str))
    return " ".join(ids.whole_text(part) for part in parts if part)


def _facts(record: dict) -> dict[str, str]:
    """Returns an item's facts as text, the price to the cent."""
    values = {name: record.get(name) for name in ("title", "brand", "price")}
    facts = {
        name: ids.whole_text(v.strip())
        for name, v in values.items()
        if isinstance(v, str) and v.strip()
    }
    price = values["price"]
    # True is no price, though Python takes it for 1.
    if isinstance(price, int | float) and price is not True and 0 < price < _LARGEST_PRICE:
        facts["price"] = f"{price:.2f}"
    return facts


def _read_items(
    path: pathlib.Path, queries: dict[int, list[str]]
) -> tuple[dict[str, list[int]], dict[str, str], dict[str, dict[str, str]]]:
    """Reads the query ids, the text and the facts of each item of the catalogue."""
    items, texts, facts = {}, {}, {}
    for number, line in enumerate(_lines(path), 1):
        try:
            record = json.loads(line)
            name = ids.number_of(record["item"])
            listed = record["query_ids"]
            if not isinstance(listed, list):  # the characters of "12" are no queries 1 and 2
                raise TypeError
            query_ids = [ids.number_of(query) for query in listed]
        except (ValueError, KeyError, TypeError, RecursionError):
            expected = 'a JSON object with "item" and "query_ids"'
            raise _malformed(path, number, expected, line) from None
        if name < 0:
            raise _malformed(path, number, "an item id of 0 or more", str(name))
        if str(name) in items:
            raise _malformed(path, number, "one line an item", str(name))
        unknown = [q for q in query_ids if q not in queries]
        if unknown:
            raise _malformed(path, number, "query ids of queries.tsv", str(unknown[0]))
        items[str(name)] = query_ids
        texts[str(name)], facts[str(name)] = _text(record), _facts(record)
    return items, texts, facts


def _read_sequences(
    path: pathlib.Path, items: dict[str, list[int]]
) -> tuple[list[str], list[str], list[int], np.ndarray]:
    """Reads user, item and position of every purchase, and the users' numbers int64 [R]."""
    users: list[str] = []
    bought: list[str] = []
    times: list[int] = []
    lengths = []
    known: set[str] = set()
    for number, line in enumerate(_lines(path), 1):
        user, rest = _split_line(path, number, line, "user id TAB items")
        if user in known:
            raise _malformed(path, number, "one line a user", user)
        known.add(user)
        sequence = rest.split()
        for item in sequence:
            if item not in items:
                raise _malformed(path, number, "items of items.jsonl", item)
        users += [user] * len(sequence)
        bought += sequence
        times += range(len(sequence))
        lengths.append(len(sequence))
    return users, bought, times, np.repeat(np.arange(len(lengths)), lengths)


def read_amazon_beauty(data_dir: str, *, query_seed: int = 0) -> Log:
    """Reads the folder into a log; times are positions, from 0.

    Args:
      query_seed: of the choice among an item's queries.

    Raises:
      UserError: a file is missing or a line malformed; the message names the line.
    """
    sequences, catalogue, query_texts = raw_files(data_dir)
    queries = _read_queries(query_texts)
    items, texts, facts = _read_items(catalogue, queries)
    users, bought, times, numbers = _read_sequences(sequences, items)
    keys = random_streams.keys(query_seed, numbers, np.asarray(times, np.int64))
    # Any number below 2^32 serves each item's own count of queries.
    draws = random_streams.below(keys, 1, 2**32)[:, 0].tolist()
    searches = [row for row, item in enumerate(bought) if items[item]]
    chosen = [items[bought[row]][draws[row] % len(items[bought[row]])] for row in searches]
    events = RawEvents(
        click_user=users,
        click_item=bought,
        click_time=times,
        search_user=[users[row] for row in searches],
        search_time=[times[row] for row in searches],
        search_words=[queries[query] for query in chosen],
        search_clicks=[[bought[row]] for row in searches],
        items=list(items),
        item_texts=texts,
        item_facts=facts,
    )
    return build_log("amazon_beauty", events)
