"""Reads the tables of `csv_log` shard by shard into codes of names, and checks their rows."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.errors import UserError
from input_pipelines import id_columns, ids, random_streams, times
from input_pipelines.name_coder import NameCoder
from input_pipelines.readers import csv_shards, time_columns
from input_pipelines.readers.csv_columns import unreadable
from input_pipelines.readers.csv_shards import Block, Shard


@dataclasses.dataclass
class ShardRows:
    """Says which rows of a table a shard holds, and of what times.

    Attributes:
      begin, rows: of the table's rows in the order of its shards.
      first, last: times.
    """

    shard: Shard
    begin: int
    rows: int = 0
    first: int = 0
    last: int = 0


class Table:
    """Reads a table's shards one after the other; `columns` are the schema's and the files' names.

    Attributes:
      shards: those that have been read so far.
      dates: whether times are dates, in milliseconds; None before the first row.
    """

    def __init__(self, shards: Sequence[Shard], columns: Mapping[str, str]):
        self._shards, self._columns = shards, columns
        self.shards: list[ShardRows] = []
        self.dates: bool | None = None

    def blocks(self) -> Iterator[Block]:
        """Yields the shards' rows, by the schema's names.

        Raises:
          UserError: a shard cannot be read, or holds a row that ends early.
        """
        for shard in self._shards:
            self.shards.append(ShardRows(shard, self.rows))
            try:
                for block in csv_shards.read_blocks(shard, list(self._columns.values())):
                    cells = {name: block.columns[own] for name, own in self._columns.items()}
                    yield dataclasses.replace(block, columns=cells)
                    self.shards[-1].rows += len(block)
            except (OSError, ValueError, pa.ArrowException) as error:
                raise unreadable(shard, error) from error

    @property
    def rows(self) -> int:
        return sum(one.rows for one in self.shards)

    def times(self, block: Block) -> np.ndarray:
        """Returns the times of a block, int64, and notes them.

        Raises:
          UserError: a value is no time, or one shard has dates and another numbers.
        """
        here = self.shards[-1]
        # Of the block's own shard: another may be of other times, which is told of both.
        known = self.dates if here.rows else None
        numbers, dates = time_columns.times_of(
            block.columns["time"], str(block.shard.path), block.first_row, known
        )
        if not len(numbers):
            return numbers
        if self.dates is None:
            self.dates = dates
        elif self.dates != dates:
            before = next(one for one in self.shards if one.rows)
            check_one_kind([(before, self.dates), (here, dates)])
        first, last = int(numbers.min()), int(numbers.max())
        here.first = min(here.first, first) if here.rows else first
        here.last = max(here.last, last) if here.rows else last
        return numbers

    def check_units(self) -> None:
        """Raises UserError where the times of two shards are dates in different units alone."""
        if not self.dates:
            check_units(self.shards)

    def place(self, row: int) -> tuple[pathlib.Path, int]:
        """Returns the file of one of the table's rows from 0, and the row's number in it."""
        one = next(one for one in reversed(self.shards) if one.begin <= row)
        return one.shard.path, row - one.begin + 1

    def check_each_once(self, *columns: Sequence[np.ndarray]) -> None:
        """Refuses two shards with the same rows, in whatever order and format.

        Args:
          columns: blocks of integers, all rows of the table in each.

        Raises:
          UserError: there are two.
        """
        alike = collections.Counter(map(_outline, self.shards))
        check_each_once(
            [
                (one, _sum_of_rows(columns, one.begin, one.rows))
                for one in self.shards
                if one.rows and alike[_outline(one)] > 1
            ]
        )


def _outline(shard: ShardRows) -> tuple[int, int, int]:
    return shard.rows, shard.first, shard.last


def check_units(shards: Sequence[ShardRows]) -> None:
    """Raises UserError where the times of two shards are dates in different units alone."""
    by_unit: dict[str, ShardRows] = {}
    for one in shards:
        if one.rows:
            by_unit.setdefault(times.unit_of(np.array([one.first, one.last])), one)
    by_unit.pop(times.POSITIONS, None)
    if len(by_unit) > 1:
        (unit, one), (other_unit, other) = list(by_unit.items())[:2]
        raise UserError(
            f"expected the times of all shards in one unit, found {unit} in {one.shard.path} "
            f"({one.first} to {one.last}) and {other_unit} in {other.shard.path} ({other.first} to "
            f"{other.last}); write all times in one unit"
        )


def check_one_kind(shards: Sequence[tuple[ShardRows, bool]]) -> None:
    """Raises UserError where one shard with rows has dates and another numbers.

    Args:
      shards: each with whether its times are dates.
    """
    for (first, dates), (other, are_dates) in itertools.pairwise(shards):
        if dates != are_dates:
            one, two = (first, other) if dates else (other, first)
            raise UserError(
                f"expected times of one kind in all shards, found dates in {one.shard.path} and "
                f"numbers in {two.shard.path}; write them alike"
            )


def check_each_once(shards: Sequence[tuple[ShardRows, int]]) -> None:
    """Raises UserError where two shards have the same rows.

    Args:
      shards: each with the sum of its rows' keys.
    """
    known: dict[tuple[int, ...], ShardRows] = {}
    for one, key in shards:
        other = known.setdefault((*_outline(one), key), one)
        if one.rows and other is not one:
            raise UserError(
                f"expected each shard once, found the same {one.rows} rows in {other.shard.path} "
                f"and {one.shard.path}; remove one of them"
            )


def _sum_of_rows(columns: Sequence[Sequence[np.ndarray]], begin: int, rows: int) -> int:
    """Returns the sum of the rows' keys, which does not depend on their order."""
    total = 0
    for blocks in zip(*columns, strict=True):
        part = slice(max(begin, 0), max(begin + rows, 0))
        if part.start < len(blocks[0]) and part.stop > 0:
            keys = random_streams.keys(*(block[part] for block in blocks))
            total += int(keys.sum(dtype=np.uint64))
        begin -= len(blocks[0])
    return total % 2**64


def _where(block: Block, column: str) -> str:
    return f"column {column} of {block.shard.path}"


def ids_of(block: Block, column: str) -> tuple[np.ndarray, pa.LargeStringArray]:
    """Returns (codes, ids) of a column. Raises UserError with the row of a value that is no id."""
    read = id_columns.coded_texts if block.shard.is_csv else id_columns.coded
    codes, names = read(block.columns[column], _where(block, column), block.first_row)
    rows = np.arange(len(codes)) + block.first_row
    _check_ids(names, codes, rows, block.shard.path, column)
    return codes, names


def texts_of(block: Block, column: str) -> tuple[np.ndarray, pa.LargeStringArray]:
    """Returns (codes, texts) of a column. Raises UserError with the row of what is no text."""
    return id_columns.coded_texts(block.columns[column], _where(block, column), block.first_row)


def _check_ids(
    names: pa.LargeStringArray,
    codes: np.ndarray,
    rows: np.ndarray,
    path: pathlib.Path,
    column: str,
) -> None:
    odd = id_columns.odd_names(names)
    if not odd.any():
        return
    place = int(np.argmax(odd[codes]))
    value = names[int(codes[place])].as_py()
    size = len(value.encode())
    shown = repr(value[:40]) + f"... of {size:,} bytes" * (size > ids.LONGEST_BYTES)
    raise UserError(
        f"expected ids of {path}, column {column}, without white space, not empty, not negative "
        f"and of {ids.LONGEST_BYTES:,} bytes at most, found {shown} in row {rows[place]}; mend the "
        "file"
    )


def clicked_of(block: Block) -> tuple[np.ndarray, np.ndarray, pa.LargeStringArray]:
    """Returns (how many items each cell of clicked_items has, the codes of all, their ids)."""
    column, where = block.columns["clicked_items"], _where(block, "clicked_items")
    path, rows = block.shard.path, np.arange(len(block)) + block.first_row
    if pa.types.is_nested(column.type):
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            raise UserError(
                f"expected lists or text in {where}, found {column.type}; write the file again"
            )
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        values = pc.list_flatten(column)
        rows = np.repeat(rows, lengths)
        try:
            codes, names = id_columns.coded(values, where)
        except UserError:
            # The rule again, with the rows of the values.
            ids.of_values(values.to_pylist(), where, rows.tolist())
            raise
    else:
        texts, distinct = id_columns.coded_texts(column, where, block.first_row)
        cells = [text.split() for text in distinct.to_pylist()]
        counts = np.fromiter(map(len, cells), np.int64, len(cells))
        flat = pa.array([item for cell in cells for item in cell], pa.large_string())
        codes, names = id_columns.coded_texts(flat, where)
        starts = np.cumsum(counts) - counts
        lengths = counts[texts]
        rows = np.repeat(rows, lengths)
        ends = np.cumsum(lengths)
        places = np.repeat(starts[texts] - (ends - lengths), lengths) + np.arange(len(rows))
        codes = codes[places]
    _check_ids(names, codes, rows, path, "clicked_items")
    return lengths, codes, names


# The row of a table, from 0 -> its file and its number there.
Place: TypeAlias = Callable[[int], tuple[pathlib.Path, int]]


@dataclasses.dataclass
class Clicks:
    """Holds the clicks in blocks; `session` are codes of texts, where the files name sessions."""

    place: Place
    named: bool
    user: list[np.ndarray] = dataclasses.field(default_factory=list)
    item: list[np.ndarray] = dataclasses.field(default_factory=list)
    time: list[np.ndarray] = dataclasses.field(default_factory=list)
    session: list[np.ndarray] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Coders:
    """Codes the names of all tables; `queries` and the sessions of clicks are any text."""

    users: NameCoder = dataclasses.field(default_factory=NameCoder)
    items: NameCoder = dataclasses.field(default_factory=NameCoder)
    sessions: NameCoder = dataclasses.field(default_factory=NameCoder)
    queries: NameCoder = dataclasses.field(default_factory=NameCoder)

    def merge(self) -> None:
        for coder in (self.users, self.items, self.sessions, self.queries):
            coder.merge()


def read_clicks(table: Table, coders: Coders, named: bool) -> Clicks:
    clicks = Clicks(table.place, named)
    for block in table.blocks():
        for column, coder, codes_of in (
            ("user", coders.users, clicks.user),
            ("item", coders.items, clicks.item),
        ):
            codes, names = ids_of(block, column)
            coder.add(names, codes)
            codes_of.append(codes)
        clicks.time.append(table.times(block))
        if named:
            codes, names = texts_of(block, "search_session")
            coders.sessions.add(names, codes)
            clicks.session.append(codes)
    table.check_units()
    return clicks


@dataclasses.dataclass
class Searches:
    """Holds the searches; `session` is None where there is no such column."""

    place: Place
    user: np.ndarray
    time: np.ndarray
    query: np.ndarray
    session: np.ndarray | None
    lengths: np.ndarray
    clicked: np.ndarray


def joined_blocks(blocks: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, kind), *blocks])


def read_searches(table: Table, coders: Coders, has: Sequence[str]) -> Searches:
    users, whens, queries, sessions, lengths, clicked = ([] for _ in range(6))  # type: ignore
    for block in table.blocks():
        codes, names = ids_of(block, "user")
        coders.users.add(names, codes)
        users.append(codes)
        if "session" in has:
            codes, names = ids_of(block, "session")
            coders.sessions.add(names, codes)
            sessions.append(codes)
        whens.append(table.times(block))
        codes, names = texts_of(block, "query")
        coders.queries.add(names, codes)
        queries.append(codes)
        if "clicked_items" in has:
            counts, codes, names = clicked_of(block)
            coders.items.add(names, codes)
            lengths.append(counts)
            clicked.append(codes)
    table.check_units()
    coders.merge()
    table.check_each_once(users, whens, queries)
    return Searches(
        table.place,
        joined_blocks(users, np.int32),
        joined_blocks(whens, np.int64),
        joined_blocks(queries, np.int32),
        joined_blocks(sessions, np.int32) if "session" in has else None,
        joined_blocks(lengths, np.int64)
        if "clicked_items" in has
        else np.zeros(table.rows, np.int64),
        joined_blocks(clicked, np.int32),
    )


def read_items(
    table: Table | None, coders: Coders, has: Sequence[str]
) -> tuple[np.ndarray, dict[str, str] | None]:
    """Returns (the codes of the items of the catalogue, their texts where it has titles)."""
    every: list[np.ndarray] = []
    titles: dict[str, str] | None = {} if "title" in has else None
    for block in table.blocks() if table is not None else ():
        codes, names = ids_of(block, "item")
        if titles is not None:
            places, texts = texts_of(block, "title")
            known, shown = names.to_pylist(), texts.to_pylist()
            titles |= {known[c]: shown[p] for c, p in zip(codes, places, strict=True)}
        coders.items.add(names, codes)
        every.append(codes)
    coders.merge()
    return joined_blocks(every, np.int32), titles
