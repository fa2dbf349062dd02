"""Defines what a recommender is asked and what it answers, as plain data, and reads both as JSON.

A question in JSON, every key optional (`launch.predict --events` reads one a line, the server one
a body):

    {"user": "A1", "clicks": ["B00", {"item": "B01", "time": 1700000000}],
     "searches": ["red lipstick", {"query": "nail", "clicked": ["B02"], "time": 1700000100}],
     "query": "nail polish", "at": 1700000200, "k": 20, "candidates": ["B03"], "exclude": ["B04"],
     "keep_seen": false, "because": false, "reasoning_steps": 3}

Python may write a click with its time as ("B01", 1700000000) and a search as
("nail", ["B02"], 1700000100). Ids are the user's own; numbers become their digits. A time is a
number in the unit of the training log, or, where that is of a clock, a date and time of ISO 8601
("2023-11-14T22:13:20Z", in UTC where it names no zone).
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from core.errors import UserError
from input_pipelines import ids, times

# What a recommender may be asked for.
RECOMMEND, SEARCH = "recommend", "search"
# What an int64 holds.
_LATEST = 2**63 - 1
_SHOWN = 40


class Click(NamedTuple):
    """Holds a click: the item's id, and its time in the log's unit, or None."""

    item: str
    time: int | None = None


class Search(NamedTuple):
    """Holds a search: what was typed, the ids of the items clicked in it, and its time or None."""

    query: str
    clicked: tuple[str, ...] = ()
    time: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Asks for recommendations, or for the items of a search where `query` is text.

    Attributes:
      clicks, searches: what the user did, beside what the log holds of a known user. With times
        they may come in any order; without times they are in order, the latest last, and later than
        the log.
      user: the user's id; None, or an id that the log does not hold, is someone unknown.
      query: words of a search; None asks for recommendations.
      at: the time of the question: only what is earlier is history. None is after everything.
      k: items at most.
      candidates: ids to choose from; None is the whole catalogue.
      exclude: ids to leave out.
      keep_seen: whether items that the user has touched may come again.
      because: whether the answer says what moved each item.
      reasoning_steps: K for this answer, of a model that reasons; None is the run's own.
    """

    clicks: tuple[Click, ...] = ()
    searches: tuple[Search, ...] = ()
    user: str | None = None
    query: str | None = None
    at: int | None = None
    k: int = 20
    candidates: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    keep_seen: bool = False
    because: bool = False
    reasoning_steps: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moved:
    """Says how one event of the history moved an item: the item as it is, less without the event.

    Attributes:
      kind: 'click' or 'search'.
      item: id of the clicked item; None for a search.
      query: words of the search; None for a click.
      clicked: ids of the items clicked in the search.
      given: the event's place in `Request.clicks` or `Request.searches`; None for one of the log.
      score: the score with the event less the score without it.
      rank: by how many places the event moved the item up; negative where it moved it down.
    """

    kind: str
    item: str | None = None
    query: str | None = None
    clicked: tuple[str, ...] = ()
    given: int | None = None
    score: float
    rank: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Because:
    """Says why an item stands where it stands.

    Attributes:
      moved: the events that the model read, the one that moved the score most first.
      rank_by_step: the item's rank, from 1, with k = 0..K reasoning steps; None of a model that
        does not reason.
    """

    moved: tuple[Moved, ...]
    rank_by_step: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recommended:
    """Holds one item of an answer.

    Attributes:
      item: the id.
      title: '' where the data has none.
      score: what the method ranks by: a logit, or a log-likelihood in nats.
      probability: of a click, where the method has one; else None.
      because: where it was asked for.
    """

    item: str
    title: str
    score: float
    probability: float | None = None
    because: Because | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """Holds the items of an answer, best first, and what of the question was not used.

    Attributes:
      items: `Request.k` at most; fewer where fewer are left.
      known_user: whether the log has this user.
      skipped_items: ids that the catalogue lacks, in clicks, searches and candidates.
      skipped_words: words of searches that the training queries lack.
      skipped_events: events that are not earlier than `Request.at`.
    """

    items: tuple[Recommended, ...]
    known_user: bool = False
    skipped_items: int = 0
    skipped_words: int = 0
    skipped_events: int = 0

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON; keys whose value is None are left out."""
        return _plain(self)


class Answers(Protocol):
    """Describes what the server asks of a recommender, be it of a workdir or of an export.

    Attributes:
      name: of the method and its run, for people.
      tasks: what it answers: 'recommend', 'search' or both.
      catalogue_size: V, the largest k.
      max_steps: the largest K; None where the method does not reason.
      titles: by item id, '' where there is none.
      time_unit: of times, of `times.UNITS`: that of the training log.
    """

    name: str
    tasks: tuple[str, ...]
    catalogue_size: int
    max_steps: int | None
    titles: Mapping[str, str]
    time_unit: str

    def recommend_many(self, requests: Sequence[Request]) -> list[Answer | UserError]:
        """Answers each request, or says in a UserError in its place why it cannot."""
        ...

    def recommend(self, **question: Any) -> Answer:
        """Answers one question, whose keywords are the fields of `Request`.

        Raises:
          UserError: the question is malformed, or cannot be answered.
        """
        ...

    def search(self, query: str, **question: Any) -> Answer:
        """Finds the items of a search; otherwise as `recommend`."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds what one question may hold.

    Attributes:
      events: clicks and searches together.
      ids: in one list of ids: the items clicked in a search, candidates, exclude.
      characters: of a query.
    """

    events: int = 10_000
    ids: int = 100_000
    characters: int = 10_000


DEFAULT_LIMITS = Limits()


def parse(
    question: Any, limits: Limits = DEFAULT_LIMITS, time_unit: str = times.POSITIONS
) -> Request:
    """Reads a question from plain JSON, or from the keywords of `Answers.recommend`.

    Args:
      time_unit: of the training log, of `times.UNITS`; dates of ISO 8601 are brought into it.

    Raises:
      UserError: it is no object, or a key or value is wrong; names the key.
    """
    if not isinstance(question, Mapping):
        raise UserError(f"expected a JSON object, found {_shown(question)}; see docs/use.md")
    known = [field.name for field in dataclasses.fields(Request)]
    for key in question:
        if key not in known:
            raise UserError(
                f"expected keys of {', '.join(known)}, found {_shown(key)}; correct or drop it"
            )
    given = {key: value for key, value in question.items() if value is not None}
    values: dict[str, Any] = {}
    for key, read in _READ.items():
        if key in given:
            values[key] = read(given[key], key, limits)
    for key, read_timed in _READ_TIMED.items():
        if key in given:
            values[key] = read_timed(given[key], key, limits, time_unit)
    request = Request(**values)
    events: list[Click | Search] = [*request.clicks, *request.searches]
    if len(events) > limits.events:
        raise UserError(
            f"expected at most {limits.events:,} clicks and searches, found {len(events):,}; "
            "send the latest"
        )
    timed = sum(event.time is not None for event in events)
    if timed not in (0, len(events)):
        raise UserError(
            f"expected times of all clicks and searches or of none, found {timed} of "
            f"{len(events)}; add the others or leave all out"
        )
    return request


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _id(value: Any, where: str) -> str:
    try:
        return ids.of_value(value)
    except ValueError as error:
        raise UserError(f"expected an id as text in {where}, found {error}; correct it") from None


def _list(value: Any, where: str, most: int) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise UserError(f"expected a list as {where}, found {_shown(value)}; put it in [ ]")
    if len(value) > most:
        raise UserError(f"expected at most {most:,} in {where}, found {len(value):,}; send fewer")
    return list(value)


def _ids(value: Any, where: str, limits: Limits) -> tuple[str, ...]:
    return tuple(_id(one, where) for one in _list(value, where, limits.ids))


def _text(value: Any, where: str, limits: Limits) -> str:
    if not isinstance(value, str):
        raise UserError(f"expected text as {where}, found {_shown(value)}; put it in quotes")
    if len(value) > limits.characters:
        raise UserError(
            f"expected at most {limits.characters:,} characters in {where}, found "
            f"{len(value):,}; shorten it"
        )
    return ids.whole_text(value)


def _whole(value: Any) -> int | None:
    """Returns a whole number, and None of NaN, True, text and all else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    number = float(value)
    return int(number) if math.isfinite(number) and number.is_integer() else None


def _time(value: Any, where: str, unit: str) -> int:
    number = _whole(value)
    dates = unit in times.CLOCKS
    if isinstance(value, str) and dates:
        milliseconds = times.from_iso(value)
        if milliseconds is not None:
            nanoseconds = milliseconds * times.CLOCKS["milliseconds"]
            number = nanoseconds // times.CLOCKS[unit]
    if number is None or abs(number) > _LATEST:
        what = "in the unit of the training log"
        if dates:
            what = f"of {unit} since 1970, or as a date of ISO 8601"
        raise UserError(
            f"expected the time of {where} as a whole number {what}, found {_shown(value)}; "
            "correct it"
        )
    return number


def _pair(value: Any, where: str, keys: Sequence[str]) -> list[Any]:
    """Returns the parts of an event, None where one is left out.

    Args:
      value: the first part alone, a list of parts, or an object of `keys`.
    """
    if isinstance(value, Mapping):
        if unknown := [key for key in value if key not in keys]:
            raise UserError(
                f"expected keys of {', '.join(keys)} in {where}, found {_shown(unknown[0])}; "
                "correct or drop it"
            )
        if value.get(keys[0]) is None:
            raise UserError(f"expected the key {keys[0]} in {where}, found none; add it")
        parts = [value.get(key) for key in keys]
    elif isinstance(value, list | tuple):
        if not 0 < len(value) <= len(keys):
            raise UserError(
                f"expected {where} as [{', '.join(keys)}], found {_shown(value)}; correct it"
            )
        parts = list(value)
    else:
        parts = [value]
    return parts + [None] * (len(keys) - len(parts))


def _clicks(value: Any, where: str, limits: Limits, unit: str) -> tuple[Click, ...]:
    clicks = []
    for number, one in enumerate(_list(value, where, limits.events), 1):
        at = f"click {number}"
        item, time = _pair(one, at, ("item", "time"))
        clicks.append(Click(_id(item, at), None if time is None else _time(time, at, unit)))
    return tuple(clicks)


def _searches(value: Any, where: str, limits: Limits, unit: str) -> tuple[Search, ...]:
    searches = []
    for number, one in enumerate(_list(value, where, limits.events), 1):
        at = f"search {number}"
        query, clicked, time = _pair(one, at, ("query", "clicked", "time"))
        searches.append(
            Search(
                _text(query, at, limits),
                () if clicked is None else _ids(clicked, f"the clicked items of {at}", limits),
                None if time is None else _time(time, at, unit),
            )
        )
    return tuple(searches)


def _count(least: int) -> Callable[[Any, str, Limits], int]:
    def read(value: Any, where: str, limits: Limits) -> int:
        del limits
        number = _whole(value)
        if number is None or number < least:
            raise UserError(
                f"expected {where} as a whole number from {least}, found {_shown(value)}; "
                "correct it"
            )
        return number

    return read


def _flag(value: Any, where: str, limits: Limits) -> bool:
    del limits
    if not isinstance(value, bool):
        raise UserError(f"expected true or false as {where}, found {_shown(value)}; correct it")
    return value


def _query(value: Any, where: str, limits: Limits) -> str:
    text = _text(value, where, limits)
    if not text.strip():
        raise UserError(f"expected words in {where}, found none; type some, or leave it out")
    return text


_READ: dict[str, Callable[[Any, str, Limits], Any]] = {
    "user": lambda value, where, limits: _id(value, where),
    "query": _query,
    "k": _count(1),
    "candidates": _ids,
    "exclude": _ids,
    "keep_seen": _flag,
    "because": _flag,
    "reasoning_steps": _count(0),
}


_READ_TIMED: dict[str, Callable[[Any, str, Limits, str], Any]] = {
    "clicks": _clicks,
    "searches": _searches,
    "at": lambda value, where, limits, unit: _time(value, where, unit),
}


def _plain(value: Any) -> Any:
    # Not `dataclasses.asdict`, whose copies took as long as the scores of a batch.
    if isinstance(value, Answer | Recommended | Because | Moved):
        return {key: _plain(one) for key, one in vars(value).items() if one is not None}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value
