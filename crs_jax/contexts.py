"""Users and items as compact JSON text, 3.1.1 of CRS.

A user's context has a profile, searches and clicks in time order with clicked and unclicked items,
times and places, and the current query; an item's title, price, brand, category and sales. What is
not known is left out. Items of a history stand as their ids, which are tokens.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from core.errors import UserError
from crs_jax.vocabulary import END, START, THINK, Vocabulary

# Stands for the < of an id inside JSON, where every other < is written as an escape: no text of a
# user or item can be read as a control token or an id.
OPEN = "\ue000"

REASON = "Which item will this user choose? Think first."
ANSWER = "Which item will this user choose? Answer at once."
TO_ID = "Which id has this item?"
TO_ITEM = "Which item has this id?"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemContext:
    """Holds what is known of an item; None is left out."""

    title: str
    price: str | None = None
    brand: str | None = None
    category: str | None = None
    sales: int | None = None

    def to_json(self) -> str:
        fields = {k: _clean(v) for k, v in dataclasses.asdict(self).items() if v is not None}
        return _json(fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """Describes a search, or without a query a recommendation.

    Attributes:
      query: the words as text.
      clicked, unclicked: ids as names such as '<a_1><b_2><c_0><d_0>'.
      time, place: as text.
    """

    query: str | None = None
    clicked: Sequence[str] = ()
    unclicked: Sequence[str] = ()
    time: str | None = None
    place: str | None = None

    def to_json(self) -> str:
        fields: dict[str, Any] = {
            "time": self.time,
            "place": self.place,
            "query": self.query,
            "clicked": [_marked(name) for name in self.clicked],
            "unclicked": [_marked(name) for name in self.unclicked],
        }
        return _json({k: v for k, v in fields.items() if v not in (None, [])})


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserContext:
    """Holds what is known when a user searches.

    Attributes:
      profile: of the user.
      events: oldest first.
      query: the current one.
      time, place: of the current query; the time as a date and an hour.
    """

    query: str
    profile: Mapping[str, str] = dataclasses.field(default_factory=dict)
    events: Sequence[Event] = ()
    time: str | None = None
    place: str | None = None


def _marked(name: str) -> str:
    return name.replace("<", OPEN)


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(OPEN, "<")


def _clean(value: Any) -> Any:
    """Texts without the character that stands for the < of ids; numbers as they are."""
    if isinstance(value, str):
        return value.replace(OPEN, "")
    if not isinstance(value, Mapping):
        return value
    return {_clean(k): _clean(v) for k, v in value.items()}


def _opening(instruction: str) -> str:
    return f"{START}user\n{instruction}\n"


_CLOSING = f"{END}\n{START}assistant\n"


def user_parts(context: UserContext) -> tuple[str, list[str], str]:
    """Writes the context's JSON in three parts: before the events, each event, after them."""
    head = "{"
    if context.profile:
        head += f'"user":{_json(_clean(context.profile))},'
    head += '"history":['
    events = [
        dataclasses.replace(
            event, **{k: _clean(v) for k in ("query", "time", "place") if (v := getattr(event, k))}
        )
        for event in context.events
    ]
    now = {"query": context.query, "time": context.time, "place": context.place}
    last = _json({k: _clean(v) for k, v in now.items() if v is not None})
    return head, [event.to_json() for event in events], f"],{last[1:]}"


class Prompt(NamedTuple):
    """Holds a prompt's tokens, and whether texts of its context were cut to make it fit."""

    tokens: list[int]
    cut: bool


def user_prompt(
    context: UserContext, vocabulary: Vocabulary, *, limit: int, reason: bool
) -> Prompt:
    """Writes a prompt that asks for an item; what does not fit is left out.

    The oldest events go first, whole, so that what is left is the same JSON with a shorter history.
    A context that is too long without any event loses the ends of its longest texts: the query, its
    place and the profile's values are cut to one length, the greatest that fits.

    Args:
      limit: tokens at most.
      reason: True ends in <think>; False asks for the id at once.

    Raises:
      UserError: the limit holds nothing of a query.
    """
    opening = _opening(REASON if reason else ANSWER)
    closing = _CLOSING + (THINK if reason else "")

    def around(context: UserContext) -> tuple[list[int], list[int], list[str]]:
        head, events, tail = user_parts(context)
        return vocabulary.encode(opening + head), vocabulary.encode(tail + closing), events

    def room_of(length: int) -> int:
        first, last, _ = around(_shortened(context, length))
        return limit - len(first) - len(last)

    first, last, events = around(context)
    room = limit - len(first) - len(last)
    if room < 0:
        length = greatest_fitting(_longest(context), lambda length: room_of(length) >= 0)
        if length == 0:
            raise UserError(
                f"expected room for a context in {limit} tokens, found {limit - room_of(0)} "
                "without its history and texts; raise config.prompts.max_prompt"
            )
        first, last, _ = around(_shortened(context, length))
        return Prompt([*first, *last], True)
    latest: list[list[int]] = []
    for number, event in enumerate(reversed(events)):
        tokens = vocabulary.encode(event + ("," if number else ""))
        room -= len(tokens)
        if room < 0:
            break
        latest.append(tokens)
    return Prompt(
        [*first, *(token for tokens in reversed(latest) for token in tokens), *last], False
    )


def greatest_fitting(most: int, fits: Callable[[int], bool]) -> int:
    """Returns the greatest length from 1 to `most` that fits, 0 if none does.

    Args:
      fits: true up to some length and false beyond it.
    """
    return bisect.bisect_left(range(1, most + 1), True, key=lambda length: not fits(length))


def _longest(context: UserContext) -> int:
    return max(map(len, (context.query, context.place or "", *context.profile.values())))


def _shortened(context: UserContext, length: int) -> UserContext:
    """Returns the context without events, each of its texts cut to so many characters."""
    return dataclasses.replace(
        context,
        query=context.query[:length],
        place=context.place and context.place[:length],
        profile={name: text[:length] for name, text in context.profile.items()},
        events=(),
    )


def item_to_id_prompt(item: ItemContext) -> str:
    """Asks for the id of an item (3.1.2)."""
    return _opening(TO_ID) + item.to_json() + _CLOSING


def item_prompt(item: ItemContext, vocabulary: Vocabulary, *, limit: int) -> list[int]:
    """Returns the tokens of `item_to_id_prompt`; what is too long loses text of the item alone.

    Args:
      limit: tokens at most.

    Raises:
      UserError: too long without anything of the item.
    """
    encode = lambda shorter: vocabulary.encode(item_to_id_prompt(shorter))  # noqa: E731 - short
    return _fitted(item, encode, limit, "max_prompt")


def item_answer(item: ItemContext, vocabulary: Vocabulary, *, limit: int) -> list[int]:
    """Returns the tokens of an item's JSON, which answers `id_to_item_prompt`, cut as
    `item_prompt`.
    """
    encode = lambda shorter: vocabulary.encode(shorter.to_json())  # noqa: E731 - short
    return _fitted(item, encode, limit, "max_answer")


def _fitted(
    item: ItemContext, encode: Callable[[ItemContext], list[int]], limit: int, setting: str
) -> list[int]:
    """Returns what `encode` gives of the item without the end of its title, then without whole
    fields.
    """
    tokens = encode(item)
    if len(tokens) <= limit:
        return tokens
    dropped: dict[str, Any] = {}
    for field in (None, "category", "brand", "price", "sales"):
        if field:
            dropped[field] = None
        item = dataclasses.replace(item, **dropped)
        bare = encode(dataclasses.replace(item, title=""))
        if len(bare) > limit:
            continue
        tokens, length = encode(item), len(item.title)
        while len(tokens) > limit:
            # As if all characters took as many tokens: a few rounds come near the limit.
            share = (limit - len(bare)) / (len(tokens) - len(bare))
            length = min(length - 1, int(length * share))
            tokens = encode(dataclasses.replace(item, title=item.title[:length].rstrip()))
        return tokens
    raise UserError(
        f"expected room for an item's context in {limit} tokens, found {len(bare)} without all "
        f"that it tells; raise config.prompts.{setting}"
    )


def id_to_item_prompt(name: str) -> str:
    """Asks for the context of an id such as '<a_1><b_2><c_0><d_0>' (3.1.2)."""
    return _opening(TO_ITEM) + name + _CLOSING


def template_texts() -> list[str]:
    """Returns what every prompt repeats, to train a tokenizer on."""
    example = Event(query="", clicked=["x"], unclicked=["x"], time="", place="")
    context = UserContext(query="", profile={"": ""}, events=[example], time="", place="")
    head, events, tail = user_parts(context)
    item = ItemContext(title="", price="", brand="", category="", sales=0)
    asked = [_opening(text) + head for text in (REASON, ANSWER)]
    return [*asked, *events, tail + _CLOSING, item_to_id_prompt(item), id_to_item_prompt("")]
