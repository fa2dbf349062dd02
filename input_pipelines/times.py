"""Finds the unit of times, and refuses logs of two: clicks in seconds, searches in ms."""

from __future__ import annotations

import datetime
import re

import numpy as np

from core.errors import UserError

POSITIONS = "positions"
# Units of a clock that counts from 1970 in UTC, with the nanoseconds of each.
CLOCKS = {
    "seconds": 1_000_000_000,
    "milliseconds": 1_000_000,
    "microseconds": 1000,
    "nanoseconds": 1,
}
UNITS = (*CLOCKS, POSITIONS)

# Times before and after these are no dates of a log.
_YEARS = (1990, 2100)
# Two kinds of events whose times lie further apart than this are of different units.
_APART = 100
# Below it, times may be positions, whose medians differ by more with no fault.
_LEAST_CLOCK = 1_000_000
_MIDDLE = (0.05, 0.95)
# A date, or a date and a time of day with or without a fraction and a zone.
_ISO = re.compile(
    r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.,]\d{1,9})?)?(Z|[+-]\d{2}(:?\d{2})?)?)?"
)


def dates(unit: str) -> tuple[int, int]:
    """Returns the times of 1990-01-01 and 2100-01-01 in a unit of `CLOCKS`."""
    first, last = (
        int(datetime.datetime(year, 1, 1, tzinfo=datetime.UTC).timestamp()) for year in _YEARS
    )
    per_second = CLOCKS["seconds"] // CLOCKS[unit]
    return first * per_second, last * per_second


def unit_of(*times: np.ndarray) -> str:
    """Returns the unit of `CLOCKS` in which all the times are dates, else 'positions'."""
    known = [some for some in times if len(some)]
    if known:
        least, most = min(int(some.min()) for some in known), max(int(some.max()) for some in known)
        for unit in CLOCKS:
            first, last = dates(unit)
            if first <= least and most < last:
                return unit
    return POSITIONS


def check_ranges(clicks: np.ndarray, searches: np.ndarray, what: str) -> None:
    """Refuses times of clicks and searches, int64, that cannot be of one unit.

    They cannot where every time is a date of 1990 to 2100 in some unit, but not all in the same; or
    where the middle nine tenths of the two kinds do not overlap, their medians are more than a
    hundredfold apart and the larger one is at least a million.

    Args:
      what: for messages, such as 'log csv_log'.

    Raises:
      UserError: they cannot be of one unit; shows both ranges.
    """
    kinds = [np.asarray(some) for some in (clicks, searches)]
    if not (_mixed(kinds) or (all(map(len, kinds)) and _apart(*kinds))):
        return
    ranges = [f"{kind.min()} to {kind.max()}" if len(kind) else "none" for kind in kinds]
    raise UserError(
        f"expected the clicks and searches of {what} in one unit of time, found clicks at "
        f"{ranges[0]} and searches at {ranges[1]}; write all times in one unit"
    )


def _mixed(kinds: list[np.ndarray]) -> bool:
    """Tells whether all times are dates, of two units or more."""
    counts = []
    for unit in CLOCKS:
        first, last = dates(unit)
        counts.append(sum(int(((kind >= first) & (kind < last)).sum()) for kind in kinds))
    return sum(counts) == sum(map(len, kinds)) and sum(count > 0 for count in counts) > 1


def _apart(clicks: np.ndarray, searches: np.ndarray) -> bool:
    (low, high), (first, last) = (np.quantile(kind, _MIDDLE) for kind in (clicks, searches))
    if low <= last and first <= high:
        return False
    medians = sorted(abs(float(np.median(kind))) for kind in (clicks, searches))
    return medians[1] >= _LEAST_CLOCK and medians[1] > _APART * max(medians[0], 1)


def from_iso(text: str) -> int | None:
    """Returns the milliseconds since 1970 of an ISO 8601 date or date and time; None of others.

    What has no zone is UTC; parts of a millisecond are cut off.
    """
    if not _ISO.fullmatch(text):
        return None
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:  # the thirteenth month
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (when - epoch) // datetime.timedelta(milliseconds=1)


def shown(time: int, unit: str) -> str:
    """Returns a time of a clock as a date and a time in UTC, for people; others as a number."""
    if unit not in CLOCKS:
        return str(time)
    first, last = dates(unit)
    if not first <= time < last:
        return str(time)
    seconds = time * CLOCKS[unit] // CLOCKS["seconds"]
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M:%S}"
