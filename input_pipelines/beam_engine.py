"""Prepares `csv_log` as an Apache Beam pipeline, on any runner, into the log of one machine.

    shards -> rows checked, coded and parted by user -> grouped -> one log of each part's users
           -> (here) the logs joined, checked and saved

A shard is read, and a part of the users is sorted, by one worker alone; the last step holds the
whole log once. Every worker reads `raw_dir` and writes a folder beside the prepared one, which they
all must see. What a worker finds wrong is written there too, so that the first mistake of all
shards, in their order, ends the program in its one line.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions

from core.errors import UserError, reason_of
from core.files import write_atomically
from input_pipelines import random_streams, segmenters, times
from input_pipelines.coded_events import build_coded_log
from input_pipelines.joined_logs import joined
from input_pipelines.log import Log, tie_break
from input_pipelines.prepared_log import load_log, save_log
from input_pipelines.readers import csv_log, csv_tables
from input_pipelines.readers.csv_columns import COLUMNS, check_headers, names_of
from input_pipelines.readers.csv_shards import Shard

_BYTES_A_PART = 64 * 2**20
_MOST_PARTS = 1024


def options_of(text: str) -> PipelineOptions:
    """Returns Beam's options of one text, as a shell splits it.

    Raises:
      UserError: Beam, with its runners, knows no such option or runner, or not this value.
    """
    words = text.split()
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for kind in _kinds(PipelineOptions):
        with contextlib.suppress(argparse.ArgumentError):  # two runners name one option
            kind._add_argparse_args(parser)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            _, unknown = parser.parse_known_args(words)
        reason = f"{unknown[0]!r}, which is none" if unknown else ""
        options = PipelineOptions(words)
        runner = options.get_all_options().get("runner")
        beam.runners.create_runner(runner or "DirectRunner")
    except SystemExit:
        reason = (said.getvalue().splitlines() or ["a value that it does not take"])[-1]
    except (ValueError, ImportError) as error:
        reason = reason_of(error)
    if reason:
        raise UserError(
            f"expected --beam_options of Apache Beam {beam.__version__}, found {reason}; correct "
            "it, for instance --beam_options='--runner=DirectRunner --direct_num_workers=2'"
        )
    return options


def _kinds(kind: type) -> Iterator[Any]:
    each: Any
    for each in kind.__subclasses__():
        yield each
        yield from _kinds(each)


@dataclasses.dataclass(frozen=True)
class _Job:
    """Says what every worker needs to know.

    Attributes:
      folder: that all workers write.
      columns: by table, the file's name of each column that is there.
      parts: that the users fall into.
    """

    folder: str
    segmenter: str
    columns: Mapping[str, Mapping[str, str]]
    parts: int
    time_unit: str = ""


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Holds the rows of one block of a shard whose users are of one part.

    Attributes:
      order: of the shard among its table's, and the first row: pieces are joined in this order.
      path: of the shard; rows: int64 [n], their numbers in it.
      coded: name -> (codes, names) of columns of ids and texts.
      time: int64 [n]; lengths: int64 [n], items of each row's clicked_items.
    """

    table: str
    order: tuple[int, int]
    path: pathlib.Path
    rows: np.ndarray
    coded: Mapping[str, tuple[np.ndarray, pa.LargeStringArray]]
    time: np.ndarray
    lengths: np.ndarray | None = None


def _taken(
    column: tuple[np.ndarray, pa.LargeStringArray], rows: np.ndarray
) -> tuple[np.ndarray, pa.LargeStringArray]:
    codes, names = column
    used, own = np.unique(codes[rows], return_inverse=True)
    return own.astype(np.int32), names.take(pa.array(used))


def _mistake(job: _Job, key: str, error: UserError) -> None:
    write_atomically(os.path.join(job.folder, f"mistake-{key}.json"), json.dumps(str(error)))


def _read_shard(numbered: tuple[str, int, Shard], job: _Job) -> Iterator[tuple[int, _Piece]]:
    """Yields (part, piece) of a shard's rows, and writes what is known of the whole shard."""
    table, number, shard = numbered
    key = f"{list(COLUMNS).index(table)}-{number:06d}"
    try:
        yield from _pieces(table, number, shard, job, key)
    except UserError as error:
        _mistake(job, key, error)


def _pieces(
    name: str, number: int, shard: Shard, job: _Job, key: str
) -> Iterator[tuple[int, _Piece]]:
    table = csv_tables.Table([shard], job.columns[name])
    has, total = job.columns[name], 0
    for block in table.blocks():
        coded = {"user": csv_tables.ids_of(block, "user")}
        if name == "clicks":
            coded["item"] = csv_tables.ids_of(block, "item")
        for column in {"query", "search_session"} & has.keys():
            coded[column] = csv_tables.texts_of(block, column)
        if "session" in has:
            coded["session"] = csv_tables.ids_of(block, "session")
        when = table.times(block)
        lengths = None
        if "clicked_items" in has:
            lengths, *clicked = csv_tables.clicked_of(block)
            coded["clicked_items"] = (clicked[0], clicked[1])
        rows = np.arange(len(block)) + block.first_row
        told = [tie_break(coded[c][1].to_pylist())[coded[c][0]] for c in ("user", "item", "query")
                if c in coded]  # fmt: skip
        if len(block):
            total += int(random_streams.keys(*told, when).sum(dtype=np.uint64))
        part_of = (tie_break(coded["user"][1].to_pylist(), seed=1) % job.parts)[coded["user"][0]]
        for part in np.unique(part_of).tolist():
            some = np.flatnonzero(part_of == part)
            own = {c: _taken(value, some) for c, value in coded.items() if c != "clicked_items"}
            if lengths is not None:
                ends = np.cumsum(lengths)
                places = np.repeat(ends[some] - np.cumsum(lengths[some]), lengths[some])
                places = places + np.arange(len(places))
                own["clicked_items"] = _taken(coded["clicked_items"], places)
            yield (
                part,
                _Piece(
                    name,
                    (number, block.first_row),
                    shard.path,
                    rows[some],
                    own,
                    when[some],
                    None if lengths is None else lengths[some],
                ),
            )
    table.check_units()
    (here,) = table.shards
    known = {
        "rows": here.rows,
        "first": here.first,
        "last": here.last,
        "dates": table.dates,
        "sum": total % 2**64,
    }
    write_atomically(os.path.join(job.folder, f"shard-{key}.json"), json.dumps(known))


class _Rows:
    """Knows where the rows of the pieces of a table stand in its files."""

    def __init__(self) -> None:
        self._pieces: list[_Piece] = []
        self._ends = [0]

    def add(self, piece: _Piece) -> None:
        self._pieces.append(piece)
        self._ends.append(self._ends[-1] + len(piece.rows))

    def place(self, row: int) -> tuple[pathlib.Path, int]:
        number = int(np.searchsorted(self._ends, row, side="right")) - 1
        piece = self._pieces[number]
        return piece.path, int(piece.rows[row - self._ends[number]])


def _write_part(grouped: tuple[int, Iterable[_Piece]], job: _Job) -> int:
    """Writes the log of a part's users; returns its number."""
    part, pieces = grouped
    try:
        log = _log_of(sorted(pieces, key=lambda piece: (piece.table, piece.order)), job)
    except UserError as error:
        _mistake(job, f"9-{part:06d}", error)
        return part
    save_log(log, os.path.join(job.folder, f"part-{part:06d}"))
    return part


def _log_of(pieces: Sequence[_Piece], job: _Job) -> Log:
    coders = csv_tables.Coders()
    clicks_at, searches_at = _Rows(), _Rows()
    clicks = csv_tables.Clicks(clicks_at.place, "search_session" in job.columns["clicks"])
    asked: dict[str, list[np.ndarray]] = {
        name: [] for name in ("user", "time", "query", "session", "lengths", "clicked_items")
    }
    of = {
        "user": coders.users,
        "item": coders.items,
        "clicked_items": coders.items,
        "session": coders.sessions,
        "search_session": coders.sessions,
        "query": coders.queries,
    }
    for piece in pieces:
        codes = {}
        for column, (own, names) in piece.coded.items():
            codes[column] = own.copy()
            of[column].add(names, codes[column])
        if piece.table == "clicks":
            clicks_at.add(piece)
            clicks.user.append(codes["user"])
            clicks.item.append(codes["item"])
            clicks.time.append(piece.time)
            if clicks.named:
                clicks.session.append(codes["search_session"])
        else:
            searches_at.add(piece)
            for column, own in codes.items():
                asked[column].append(own)
            asked["time"].append(piece.time)
            lengths = np.zeros(len(piece.time), np.int64)
            asked["lengths"].append(lengths if piece.lengths is None else piece.lengths)
    coders.merge()
    whole = {
        name: np.concatenate([np.zeros(0, np.int64 if name in ("time", "lengths") else np.int32),
                              *blocks]) for name, blocks in asked.items()
    }  # fmt: skip
    searches = csv_tables.Searches(
        searches_at.place,
        whole["user"],
        whole["time"],
        whole["query"],
        whole["session"] if "session" in job.columns["searches"] else None,
        whole["lengths"],
        whole["clicked_items"],
    )
    split = segmenters.segmenter(job.segmenter)
    events = csv_log.coded_events(
        coders, clicks, searches, np.zeros(0, np.int32), None, split, times.POSITIONS
    )
    return build_coded_log("csv_log", events, may_be_empty=True)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Says what a pipeline reads, after the checks of the files' headers; made by `plan`.

    Attributes:
      numbered: each shard of clicks and searches with its table and its number there.
      items: the shards of the catalogue, with the columns that they have.
      time_unit: the option of that name.
    """

    job: _Job
    numbered: Sequence[tuple[str, int, Shard]]
    items: tuple[Sequence[Shard], Sequence[str]]
    time_unit: str


def plan(
    data_dir: str,
    folder: str,
    *,
    segmenter: str = "characters",
    columns: str = "",
    time_unit: str = csv_log.INFER,
    parts: int = 0,
) -> Plan:
    """Looks at the files of a folder, before a pipeline reads them.

    Args:
      folder: an empty one that every worker can write.
      parts: that users fall into; 0 for one in 64 MB of the files. The log does not depend on it.

    Raises:
      UserError: no clicks, or columns and settings that `csv_log.read_csv_log` refuses.
    """
    segmenters.segmenter(segmenter)
    names = names_of(columns)
    shards = {table: csv_log.shards_of(data_dir, table) for table in COLUMNS}
    shards = {table: some for table, some in shards.items() if some}
    has = check_headers(shards, names)
    size = sum(shard.path.stat().st_size for some in shards.values() for shard in some)
    job = _Job(
        folder,
        segmenter,
        {table: {column: names[table][column] for column in has[table]} for table in shards},
        parts or min(_MOST_PARTS, -(-size // _BYTES_A_PART)),
    )
    numbered = [
        (table, number, shard)
        for table in ("clicks", "searches")
        for number, shard in enumerate(shards[table])
    ]
    items = (shards.get("items", ()), tuple(has.get("items", ())))
    return Plan(job, numbered, items, time_unit)


class Parts(beam.PTransform):
    """Reads the shards of a plan, and writes the log of each part of the users.

    What comes out are the parts' numbers; what went wrong is told by `log_of_parts`.
    """

    def __init__(self, plan: Plan):
        super().__init__()
        self._plan = plan

    def expand(self, pipeline: Any) -> Any:
        job = self._plan.job
        return (
            pipeline
            | "list shards" >> beam.Create(self._plan.numbered)
            | "spread shards" >> beam.Reshuffle()
            | "read shards" >> beam.FlatMap(functools.partial(_read_shard, job=job))
            | "group by users" >> beam.GroupByKey()
            | "write parts" >> beam.Map(functools.partial(_write_part, job=job))
        )


def _catalogue(plan: Plan) -> tuple[pa.LargeStringArray, Mapping[str, str] | None]:
    """Returns the items of the catalogue, and their texts: that of an item is its last row's."""
    coders, (shards, has) = csv_tables.Coders(), plan.items
    table = csv_tables.Table(shards, plan.job.columns["items"]) if shards else None
    items, titles = csv_tables.read_items(table, coders, has)
    return coders.items.names.take(pa.array(np.unique(items))), titles


def log_of_parts(
    plan: Plan, catalogue: tuple[pa.LargeStringArray, Mapping[str, str] | None] | None = None
) -> Log:
    """Returns the log of all users, once `Parts` has written theirs.

    Args:
      catalogue: None reads it.

    Raises:
      UserError: the first mistake that a worker found, in the order of the shards; or shards that
        do not go together.
    """
    folder = plan.job.folder
    further, titles = _catalogue(plan) if catalogue is None else catalogue
    _raise_first_mistake(folder)
    unit = _check_shards(folder, plan.numbered, plan.time_unit)
    found = sorted(name for name in os.listdir(folder) if name.startswith("part-"))
    logs = [load_log(os.path.join(folder, name)) for name in found]
    if not any(len(log.rec_items) for log in logs):
        raise UserError("expected clicks in the log of csv_log, found none; check the source files")
    log = joined(logs, further, titles, {})
    known = np.zeros(log.num_items + 1, bool)
    known[np.asarray(log.rec_items)] = True
    item_names = pa.array(log.item_ids.tolist(), pa.large_string())
    known |= pc.is_in(item_names, value_set=further).to_numpy(zero_copy_only=False)
    reading = csv_log.unmatched(np.asarray(log.click_items), known, item_names)
    empty = sum(one.reading.get("searches_left_out_as_empty", 0) for one in logs)
    reading |= {"searches_left_out_as_empty": empty} if empty else {}
    log = dataclasses.replace(log, reading=reading, time_unit=unit)
    times.check_ranges(np.asarray(log.rec_times), np.asarray(log.search_times), "csv_log")
    return log


def read_csv_log(data_dir: str, folder: str, options: PipelineOptions, **settings: Any) -> Log:
    """Returns the log that `csv_log.read_csv_log` returns, made by a Beam pipeline.

    Args:
      folder: an empty one that every worker can write.
      options: as of `options_of`.
      settings: further arguments of `plan`.

    Raises:
      UserError: as `csv_log.read_csv_log`; the pipeline fails.
    """
    planned = plan(data_dir, folder, **settings)
    catalogue = _catalogue(planned)
    try:
        with beam.Pipeline(options=options) as pipeline:
            _ = pipeline | Parts(planned)
    except UserError:
        raise
    except Exception as error:  # whatever a runner raises
        reason = reason_of(error)
        raise UserError(
            f"expected the Beam pipeline to end well, found {type(error).__name__} ({reason}); see "
            "the runner's own log, or run --engine=local"
        ) from error
    return log_of_parts(planned, catalogue)


def _raise_first_mistake(folder: str) -> None:
    mistakes = sorted(name for name in os.listdir(folder) if name.startswith("mistake-"))
    if mistakes:
        text = pathlib.Path(folder, mistakes[0]).read_text(encoding="utf-8")
        raise UserError(json.loads(text))


def _check_shards(folder: str, numbered: Sequence[tuple[str, int, Shard]], time_unit: str) -> str:
    """Returns the unit of the times, after the checks of one table's shards among themselves."""
    whens, dates = [], []
    for place, table in enumerate(("clicks", "searches")):
        rows, begin = [], 0
        for name, number, shard in numbered:
            if name == table:
                path = pathlib.Path(folder, f"shard-{place}-{number:06d}.json")
                known = json.loads(path.read_text(encoding="utf-8"))
                rows.append((csv_tables.ShardRows(shard, begin, known["rows"], known["first"],
                                               known["last"]), known))  # fmt: skip
                begin += known["rows"]
        filled = [(one, known) for one, known in rows if one.rows]
        csv_tables.check_one_kind([(one, bool(known["dates"])) for one, known in filled])
        is_date = any(known["dates"] for _, known in filled)
        if not is_date:
            csv_tables.check_units([one for one, _ in filled])
        csv_tables.check_each_once([(one, known["sum"]) for one, known in filled])
        dates.append(is_date)
        whens.append(np.array([t for one, _ in filled for t in (one.first, one.last)], np.int64))
    return csv_log.unit_of(dates, whens, time_unit, ranges=False)
