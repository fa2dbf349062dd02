"""Makes up raw files with KuaiSAR's names, columns and size, to rehearse preparing the real ones.

    python -m input_pipelines.sample --format=kuaisar --users=25877 --scale=large --out=DIR

Counts of users, rows, items and queries are exactly the published ones at 25,877 users and
proportional to the users below that. Nothing is planted in the data: it measures time and memory,
not models.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from core.files import scratch_folder
from input_pipelines.readers.kuaisar import FULL_COUNTS, SAMPLE_MARK

_DAYS = {"small": 9, "large": 19}
_START = 1_684_700_000_000  # milliseconds
_DAY = 86_400_000
# Impressions of a user within the same 5 minutes are sent in one batch.
_BATCH = 300_000
_CHUNK_ROWS = 1_000_000
_WORDS = 40_000
_POOL = 20_000
_SHARE_WITHOUT_CLICK = 0.4
_TYPES = ("VIDEO", "USER", "IMAGE_ATLAS", "LIVE", "COMMODITY", "MUSIC", "ADVERT")
_TYPE_SHARES = (0.9, 0.04, 0.02, 0.02, 0.01, 0.005, 0.005)
_CATEGORY_LEVELS = ("first", "second", "third", "fourth")


def write_kuaisar(out: str, *, num_users: int, scale: str, seed: int = 0) -> None:
    """Writes the five CSV files to `out`, whole or not at all.

    Args:
      out: a folder that does not exist yet.
      num_users: from 2.
      scale: 'small' or 'large'.
    """
    published = FULL_COUNTS[scale]
    counts = {
        name: max(num_users, round(count * num_users / published["users"]))
        for name, count in published.items()
    }
    rng = np.random.default_rng(seed)
    with scratch_folder(out) as folder:
        temporary = pathlib.Path(folder)
        # Ascending numbers of up to 12 digits, as in the published example 103656000000.
        items = np.arange(counts["items"]) * 15_000 + rng.integers(1, 15_000, counts["items"])
        tables = {
            "rec_inter": _rec_inter(rng, counts, items, _DAYS[scale]),
            "src_inter": _src_inter(rng, counts, items, _DAYS[scale]),
            "item_features": _item_features(rng, items),
            "user_features": _user_features(rng, num_users),
            "social_network": _social_network(rng, num_users),
        }
        for name, parts in tables.items():
            _write(temporary / f"{name}.csv", parts)
        (temporary / SAMPLE_MARK).write_text(
            "Made-up data in KuaiSAR's format, written by input_pipelines.sample.\n"
        )
        os.rename(temporary, out)


def _write(path: pathlib.Path, parts: Iterator[pa.Table]) -> None:
    first = next(parts)
    options = pyarrow.csv.WriteOptions(quoting_style="needed")
    with pyarrow.csv.CSVWriter(str(path), first.schema, write_options=options) as writer:
        writer.write_table(first)
        for table in parts:
            writer.write_table(table)


def _bounds(rows: int) -> Iterator[tuple[int, int]]:
    for start in range(0, rows, _CHUNK_ROWS):
        yield start, min(start + _CHUNK_ROWS, rows)


def _covering(rng: np.random.Generator, rows: int, count: int) -> np.ndarray:
    """Draws int64 [rows] in [0, count), each at least once if rows allow it, small ones often."""
    drawn = (count * rng.random(rows) ** 1.5).astype(np.int64)
    drawn[: min(rows, count)] = np.arange(min(rows, count))
    return rng.permutation(drawn)


def _clock(milliseconds: np.ndarray) -> pa.Array:
    return pa.array(milliseconds // 1000).cast(pa.timestamp("s"))


def _texts(pool: list[str], chosen: np.ndarray) -> pa.Array:
    return pa.array(pool).take(pa.array(chosen))


def _rec_inter(
    rng: np.random.Generator, counts: dict[str, int], items: np.ndarray, days: int
) -> Iterator[pa.Table]:
    users = _covering(rng, counts["rec_inter"], counts["users"])
    shuffled = rng.permutation(len(items))
    for start, stop in _bounds(counts["rec_inter"]):
        n = stop - start
        user = users[start:stop]
        item = items[shuffled[(len(items) * rng.random(n) ** 4).astype(np.int64)]]
        slot = rng.integers(0, days * _DAY // _BATCH, n)
        time = _START + slot * _BATCH + (user * 7919 + slot * 104_729) % _BATCH
        length = rng.integers(5_000, 120_000, n).astype(np.float64)
        yield pa.table(
            {
                "user_id": user,
                "item_id": item,
                "playing_time": np.rint(length * rng.random(n)),
                "duration_ms": length,
                "time": _clock(time),
                "timestamp": time.astype(np.float64),
                "click": (rng.random(n) < 0.5).astype(np.int64),
                "forward": (rng.random(n) < 0.01).astype(np.int64),
                "like": (rng.random(n) < 0.05).astype(np.int64),
                "follow": (rng.random(n) < 0.02).astype(np.int64),
                "search": (rng.random(n) < 0.02).astype(np.int64),
                "search_item_related": (rng.random(n) < 0.01).astype(np.int64),
            }
        )


def _keywords(rng: np.random.Generator, queries: int) -> pa.Array:
    """Makes this many different lists of word numbers, as text."""
    number = np.arange(queries)
    extra = [f", {a}, {b}" for a, b in rng.integers(1, _WORDS, (_POOL, 2)).tolist()]
    extra[: _POOL // 2] = [""] * (_POOL // 2)
    # The first two words alone tell the queries apart.
    parts = [pa.array(values).cast(pa.string()) for values in (number // 700 + 1, number % 700 + 1)]
    return pc.binary_join_element_wise(
        pa.scalar("["),
        parts[0],
        pa.scalar(", "),
        parts[1],
        _texts(extra, rng.integers(0, _POOL, queries)),
        pa.scalar("]"),
        "",
    )


def _src_inter(
    rng: np.random.Generator, counts: dict[str, int], items: np.ndarray, days: int
) -> Iterator[pa.Table]:
    rows, queries = counts["src_inter"], counts["queries"]
    sessions = max(queries, rows // 8)
    owner = _covering(rng, sessions, counts["users"])
    time = _START + rng.integers(0, days * _DAY, sessions)
    query = _covering(rng, sessions, queries)
    keywords = _keywords(rng, queries)
    clicks = rng.random(sessions) >= _SHARE_WITHOUT_CLICK
    # Every session has a row, the others fall anywhere; rows of a session stand together.
    session = np.sort(
        np.concatenate([np.arange(sessions), rng.integers(0, sessions, rows - sessions)])
    )
    first = np.concatenate([[True], session[1:] != session[:-1]])
    for start, stop in _bounds(rows):
        part, n = session[start:stop], stop - start
        clicked = clicks[part] & (first[start:stop] | (rng.random(n) < 0.15))
        yield pa.table(
            {
                "user_id": owner[part],
                "search_session_id": part,
                "search_session_time": _clock(time[part]),
                "search_session_timestamp": time[part].astype(np.float64),
                "keyword": keywords.take(pa.array(query[part])),
                "search_source": _texts(["USER_INPUT", "RECO_QUERY"], rng.integers(0, 2, n)),
                "item_id": items[(len(items) * rng.random(n) ** 2).astype(np.int64)],
                "click_cnt": clicked.astype(np.int64),
                "item_type": _texts(list(_TYPES), rng.choice(len(_TYPES), n, p=_TYPE_SHARES)),
            }
        )


def _item_features(rng: np.random.Generator, items: np.ndarray) -> Iterator[pa.Table]:
    lengths = rng.integers(0, 12, _POOL)
    captions = [str(rng.integers(1, _WORDS, n).tolist()) for n in lengths.tolist()]
    order = rng.permutation(len(items))
    for start, stop in _bounds(len(items)):
        n = stop - start
        columns = {
            "item_id": items[order[start:stop]],
            "caption": _texts(captions, rng.integers(0, _POOL, n)),
            "author_id": rng.integers(0, 1_000_000, n),
            "item_type": _texts(["NORMAL", "AD"], (rng.random(n) < 0.02).astype(np.int64)),
            "upload_time": _texts(["2023-04-22", "2023-05-01"], rng.integers(0, 2, n)),
            "upload_type": _texts(["LongImport", "ShortCamera"], rng.integers(0, 2, n)),
        }
        for level in _CATEGORY_LEVELS:
            category = rng.integers(0, 38, n)
            columns[f"{level}_level_category_id"] = category
            columns[f"{level}_level_category_name"] = _texts(
                [f"类目{i}" for i in range(38)], category
            )
            columns[f"{level}_level_category_name_en"] = _texts(
                [f"category {i}" for i in range(38)], category
            )
        yield pa.table(columns)


def _user_features(rng: np.random.Generator, users: int) -> Iterator[pa.Table]:
    columns = {"user_id": np.arange(users)}
    limits = {"search_active_level": 7, "rec_active_level": 4, "onehot_feat1": 3, "onehot_feat2": 8}
    for name, limit in limits.items():
        columns[name] = rng.integers(0, limit, users)
    yield pa.table(columns)


def _social_network(rng: np.random.Generator, users: int) -> Iterator[pa.Table]:
    pairs = rng.integers(0, users, (users // 4 + 1, 2))
    yield pa.table({"user_id": pairs[:, 0], "user_follow_id": pairs[:, 1]})
