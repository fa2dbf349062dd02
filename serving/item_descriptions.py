"""Reads what is told of items that joined after training, and finds the words that a model knows.

In a file an item is a line of JSON: {"item": "B99", "title": "Matte lipstick", "words": "makeup"}.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from core.errors import UserError
from core.text_lines import read_lines
from input_pipelines import ids

_LOG = logging.getLogger(__name__)
_KEYS = ("item", "title", "words")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewItem:
    """Describes an item that joined after training.

    Attributes:
      item: the id.
      title: to be shown, and read where there are no `words`.
      words: that say what it is, as they would be typed in a search.
    """

    item: str
    title: str = ""
    words: str = ""


def parse(items: Iterable[Any]) -> list[NewItem]:
    """Reads descriptions of items: mappings with the fields of `NewItem` as keys.

    Raises:
      UserError: one is no mapping, or has other keys or values; or an item comes twice.
    """
    described: dict[str, NewItem] = {}
    for number, one in enumerate(items, 1):
        if not isinstance(one, Mapping) or not set(one) <= set(_KEYS):
            raise UserError(
                f"expected new item {number} with the keys {', '.join(_KEYS)}, found "
                f"{str(one)[:60]!r}; correct it"
            )
        try:
            name = ids.of_value(one.get("item"))
            texts = {key: ids.text_of(one.get(key)) for key in _KEYS[1:]}
        except ValueError as error:
            raise UserError(
                f"expected an id and texts in new item {number}, found {error}; correct it"
            ) from None
        if name in described:
            raise UserError(
                f"expected each new item once, found {name[:40]!r} again as item {number}; leave "
                "one out"
            )
        described[name] = NewItem(item=name, **texts)
    return list(described.values())


def read_items(path: str) -> list[NewItem]:
    """Reads a file with one item a line, as JSON; empty lines do not count.

    Raises:
      UserError: it cannot be read, a line is no JSON, or as `parse`.
    """
    described = []
    for number, line in enumerate(read_lines(path, "new items", "correct --items"), 1):
        if not line.strip():
            continue
        try:
            described.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"expected an item as a JSON object in line {number} of {path}, found "
                f"{str(error)[:80] or 'another text'}; correct it"
            ) from None
    if not described:
        raise UserError(f"expected items in {path}, one a line, found none; fill the file")
    return parse(described)


def known_words(
    items: Sequence[NewItem],
    catalogue: Collection[str],
    split: Callable[[str], list[str]],
    numbers: Mapping[str, int],
    most: int,
) -> tuple[list[NewItem], list[list[int]]]:
    """Returns the items that join a catalogue, and the numbers of their words.

    Items that are in it already are left out, and, with a warning, those without a known word.

    Args:
      split: a text's words, as of queries.
      numbers: of the words that the model knows.
      most: words of an item.
    """
    joining, words, without = [], [], []
    for one in items:
        if one.item in catalogue:
            continue
        own = [numbers[word] for word in split(one.words or one.title) if word in numbers]
        if own:
            joining.append(one)
            words.append(list(dict.fromkeys(own))[:most])
        else:
            without.append(one.item)
    warn_of_items_without(without, "word of the training queries")
    return joining, words


def warn_of_items_without(items: Sequence[str], what: str) -> None:
    """Logs which new items stay out, since they have no `what`."""
    if items:
        _LOG.warning(
            "%d new items have no %s and stay out: %s%s",
            *(len(items), what, ", ".join(items[:3]), ", ..." if len(items) > 3 else ""),
        )


def vectors_of(words: Sequence[Sequence[int]], row: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Returns the vectors float32 [n, D] of items by their words: `row` plus their words' mean.

    Args:
      words: numbers of each item's words.
      row: float64 [D], the mean row of the trained items.
      table: float32 [W+1, D].
    """
    vectors = [row + table[list(of_item)].mean(0, dtype=np.float64) for of_item in words]
    return np.array(vectors, np.float32).reshape(-1, table.shape[1])
