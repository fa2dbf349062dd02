"""Writes made-up users in Qilin's own file format, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core import checksums
from core.files import scratch_folder
from input_pipelines.readers.qilin_files import SAMPLE_MARK

_TRAIN_SHARE = 0.9
_CHECKSUMS = "checksums.json"


@dataclasses.dataclass
class User:
    """Holds one made-up user.

    Attributes:
      clicks: (seconds, note).
      searches: (seconds, query, clicked notes).
    """

    clicks: list[tuple[int, int]]
    searches: list[tuple[int, str, list[int]]]


def _impression(rng: np.random.Generator, note: int, place: int, click: bool) -> dict[str, Any]:
    read = float(rng.exponential(20)) if click else (np.nan if rng.random() < 0.5 else -1.0)
    return {
        "note_idx": int(note),
        "position": place,
        "click": int(click),
        "like": 0,
        "collect": 0,
        "comment": 0,
        "share": 0,
        "page_time": read,
    }


def _impressions(
    rng: np.random.Generator, clicked: list[int], others: np.ndarray, stamp: dict[str, int]
) -> list[dict[str, Any]]:
    shown = [(note, True) for note in clicked]
    shown += [(int(n), False) for n in others if n not in clicked]
    order = rng.permutation(len(shown))
    rows = []
    for place, i in enumerate(order, start=1):
        note, click = shown[i]
        rows.append(_impression(rng, note, place, click) | stamp)
    if rows and rng.random() < 0.05:  # as in the published files, an impression can stand twice
        rows.append(dict(rows[0]))
    return rows


def _tables(
    users: Sequence[User],
    recommended: tuple[int, int],
    searched: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    recommendation: list[dict[str, Any]] = []
    search: list[dict[str, Any]] = []
    for user_idx, user in enumerate(users):
        recent: list[int] = []
        for seconds, item in user.clicks:
            stamp = {"request_timestamp": seconds * 1000 + int(rng.integers(1000))}
            others = rng.integers(*recommended, 3)
            recommendation.append(
                {
                    "request_idx": len(recommendation),
                    "session_idx": seconds // 86_400,
                    "user_idx": user_idx,
                    "query": "",
                    "recent_clicked_note_idxs": recent[-20:],
                    "rec_result_details_with_idx": _impressions(rng, [item], others, stamp),
                }
            )
            recent = [*recent, item]
        for seconds, query, clicked in user.searches:
            others = rng.integers(*searched, 2)
            stamp = {"search_timestamp": seconds}
            search.append(
                {
                    "search_idx": len(search),
                    "session_idx": seconds // 86_400,
                    "user_idx": user_idx,
                    "query": query,
                    "query_from_type": 1.0,
                    "recent_clicked_note_idxs": recent[-20:],
                    "search_result_details_with_idx": _impressions(rng, clicked, others, stamp),
                }
            )
    return recommendation, search


def write(
    out: str,
    users: Sequence[User],
    notes: pa.Table,
    *,
    recommended: tuple[int, int],
    searched: tuple[int, int],
    truth: dict[str, Any],
    rng: np.random.Generator,
    more: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes the parquet folders, truth.json and the checksums of all (`check`) to `out`.

    Args:
      out: a folder that does not exist yet.
      notes: columns note_idx, note_title and note_content.
      recommended, searched: notes (from, to) that impressions without a click are drawn from.
      more: further files by name, their text.
    """
    recommendation, search = _tables(users, recommended, searched, rng)
    with scratch_folder(out) as temporary:
        for kind, rows in (("recommendation", recommendation), ("search", search)):
            cut = int(len(rows) * _TRAIN_SHARE)
            for part, chosen in (("train", rows[:cut]), ("test", rows[cut:])):
                os.makedirs(os.path.join(temporary, f"{kind}_{part}"))
                table = pa.Table.from_pylist(chosen, schema=_schema(kind))
                pq.write_table(table, os.path.join(temporary, f"{kind}_{part}", "0.parquet"))
        os.makedirs(os.path.join(temporary, "notes"))
        pq.write_table(notes, os.path.join(temporary, "notes", "0.parquet"))
        for name, text in ({"truth.json": json.dumps(truth)} | dict(more)).items():
            with open(os.path.join(temporary, name), "w", encoding="utf-8") as file:
                file.write(text)
        with open(os.path.join(temporary, SAMPLE_MARK), "w", encoding="utf-8") as file:
            file.write("Made-up data in Qilin's format, written by input_pipelines.sample.\n")
        names = [
            os.path.relpath(os.path.join(folder, name), temporary)
            for folder, _, files in os.walk(temporary)
            for name in files
        ]
        described = {"files": checksums.describe(temporary, sorted(names))}
        checksums.write_sealed(os.path.join(temporary, _CHECKSUMS), described)
        os.rename(temporary, out)


def check(out: str) -> None:
    """Checks the files that `write` wrote by their checksums.

    Raises:
      UserError: a file is missing, cut, or not what was written.
    """
    remedy = f"remove {out} and run the command again"
    path = os.path.join(out, _CHECKSUMS)
    described = checksums.read_sealed(path, "the checksums of made-up data", remedy)
    checksums.check(out, described.get("files"), remedy)


def _schema(kind: str) -> pa.Schema:
    """Returns columns and types as Qilin publishes them."""
    stamp = "request_timestamp" if kind == "recommendation" else "search_timestamp"
    whole = ("note_idx", "position", "click", "like", "collect", "comment", "share")
    fields = [(name, pa.int64()) for name in whole]
    details = pa.list_(pa.struct([*fields, ("page_time", pa.float64()), (stamp, pa.int64())]))
    first = "request_idx" if kind == "recommendation" else "search_idx"
    columns = [(first, pa.int64()), ("session_idx", pa.int64()), ("user_idx", pa.int64())]
    columns.append(("query", pa.string()))
    if kind == "search":
        columns.append(("query_from_type", pa.float64()))
    columns.append(("recent_clicked_note_idxs", pa.list_(pa.int64())))
    name = "rec" if kind == "recommendation" else "search"
    columns.append((f"{name}_result_details_with_idx", details))
    return pa.schema(columns)
