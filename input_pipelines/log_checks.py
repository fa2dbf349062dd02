"""Checks what every consumer of a log relies on, before a log is saved or used again."""

from __future__ import annotations

import numpy as np

from core.errors import UserError
from input_pipelines import ids, times
from input_pipelines.empty_searches import with_content
from input_pipelines.log import NAME_ARRAYS, OPTIONAL_ARRAYS, PLACE_ARRAYS, Log


def validate_log(log: Log) -> None:
    """Checks what every consumer of a log relies on.

    Raises:
      UserError: offsets that do not cover the rows, times out of order or in two units, ids out of
        range, names that are no names, a search with neither words nor clicks, half a group of
        optional arrays.
    """
    for group in OPTIONAL_ARRAYS:
        missing = [name for name in group if getattr(log, name) is None]
        if missing and len(missing) < len(group):
            raise UserError(
                f"expected {' and '.join(group)} in log {log.name}, found no {missing[0]}; prepare "
                "the data again"
            )
    for name_offsets, name_bytes in (*NAME_ARRAYS, PLACE_ARRAYS[:2]):
        _validate_names(log, name_offsets, name_bytes)
    users = log.num_users
    if len(log.rec_times) != len(log.rec_items):
        raise UserError(
            f"expected one time a click in log {log.name}, found {len(log.rec_times)} times of "
            f"{len(log.rec_items)} clicks; prepare the data again"
        )
    searches = len(log.search_times)
    ragged = [
        (log.rec_offsets, len(log.rec_items), "rec_offsets", users + 2),
        (log.search_offsets, searches, "search_offsets", users + 2),
        (log.word_offsets, len(log.word_ids), "word_offsets", searches + 1),
        (log.click_offsets, len(log.click_items), "click_offsets", searches + 1),
    ]
    numbered = [
        (log.rec_items, log.num_items, "rec_items"),
        (log.click_items, log.num_items, "click_items"),
        (log.word_ids, log.num_words, "word_ids"),
    ]
    if log.unclicked_offsets is not None and log.unclicked_items is not None:
        shown = log.unclicked_items
        ragged.append((log.unclicked_offsets, len(shown), "unclicked_offsets", searches + 1))
        numbered.append((shown, log.num_items, "unclicked_items"))
    if log.text_offsets is not None and log.text_bytes is not None:
        ragged.append((log.text_offsets, len(log.text_bytes), "text_offsets", log.num_items + 2))
    if log.profile_offsets is not None and log.profile_bytes is not None:
        ragged.append((log.profile_offsets, len(log.profile_bytes), "profile_offsets", users + 2))
    if log.fact_offsets is not None and log.fact_bytes is not None:
        ragged.append((log.fact_offsets, len(log.fact_bytes), "fact_offsets", log.num_items + 2))
    if log.places is not None and log.search_places is not None:
        _validate_places(log, log.search_places, len(log.places) - 1)
    if log.time_unit not in times.UNITS:
        raise UserError(
            f"expected a time unit of {', '.join(times.UNITS)} in log {log.name}, found "
            f"{log.time_unit!r}; prepare the data again"
        )
    if log.search_begins is not None and (
        len(log.search_begins) != searches
        or np.any(np.asarray(log.search_begins) > log.search_times)
    ):
        raise UserError(
            f"expected search_begins of log {log.name} to be one a search, at or before its time, "
            "found others; prepare the data again"
        )
    for offsets, rows, name, length in ragged:
        if len(offsets) != length or offsets[0] != 0 or offsets[-1] != rows:
            raise UserError(
                f"expected {name} of log {log.name} to have {length} entries from 0 to {rows}, "
                f"found {len(offsets)} ending in {offsets[-1]}; prepare the data again"
            )
        if np.any(np.diff(offsets) < 0):
            raise UserError(
                f"expected ascending {name} in log {log.name}, found a decrease; prepare the data "
                "again"
            )
    for numbers, limit, name in numbered:
        if len(numbers) and (numbers.min() < 1 or numbers.max() > limit):
            worst = int(numbers.min()) if numbers.min() < 1 else int(numbers.max())
            raise UserError(
                f"expected {name} of log {log.name} from 1 to {limit}, found {worst}; prepare the "
                "data again"
            )
    empty = np.flatnonzero(~with_content(log.word_offsets, log.click_offsets))
    if len(empty):
        raise UserError(
            f"expected words or clicks in every search of log {log.name}, found neither in search "
            f"{empty[0]} and {len(empty) - 1} others; leave them out and prepare the data again"
        )
    for when, offsets, name in (
        (log.rec_times, log.rec_offsets, "clicks"),
        (log.search_times, log.search_offsets, "searches"),
    ):
        falls = np.diff(when) < 0
        starts = np.asarray(offsets[1:-1]) - 1  # a fall is legal between two users
        falls[starts[(starts >= 0) & (starts < len(falls))]] = False
        if falls.any():
            row = int(np.flatnonzero(falls)[0])
            raise UserError(
                f"expected the {name} of each user in log {log.name} in time order, found row "
                f"{row + 1} earlier than row {row}; prepare the data again"
            )
    times.check_ranges(log.rec_times, log.search_times, f"log {log.name}")


def _validate_names(log: Log, name_offsets: str, name_bytes: str) -> None:
    """Checks that `Names` can read names: UTF-8 in parts, the first one empty, none too long."""
    offsets, flat = getattr(log, name_offsets), getattr(log, name_bytes)
    if offsets is None:
        return

    def wrong(found: str) -> UserError:
        return UserError(
            f"expected names in {name_offsets} and {name_bytes} of log {log.name}, found {found}; "
            "prepare the data again"
        )

    if len(offsets) < 2 or offsets[0] != 0 or offsets[1] != 0 or offsets[-1] != len(flat):
        raise wrong(f"offsets that do not cover {len(flat)} bytes from an empty name on")
    lengths = np.diff(offsets)
    if np.any(lengths[1:] < 1):
        raise wrong("an empty name or a decrease")
    if lengths.max() > ids.LONGEST_BYTES:
        raise wrong(f"one of {lengths.max():,} bytes, where {ids.LONGEST_BYTES:,} are the most")
    starts = np.asarray(offsets[1:-1])
    # The second and later bytes of a character are 10xxxxxx.
    if np.any(np.asarray(flat)[starts] & 0xC0 == 0x80):
        raise wrong("one that begins within a character")
    try:
        np.asarray(flat).tobytes().decode()
    except UnicodeDecodeError:
        raise wrong("bytes that are no UTF-8") from None


def _validate_places(log: Log, of_searches: np.ndarray, limit: int) -> None:
    searches = len(log.search_times)
    if len(of_searches) != searches:
        raise UserError(
            f"expected one place a search in log {log.name}, found {len(of_searches)} places of "
            f"{searches} searches; prepare the data again"
        )
    if searches and (of_searches.min() < 0 or of_searches.max() > limit):
        worst = int(of_searches.min()) if of_searches.min() < 0 else int(of_searches.max())
        raise UserError(
            f"expected search_places of log {log.name} from 0 to {limit}, found {worst}; prepare "
            "the data again"
        )
