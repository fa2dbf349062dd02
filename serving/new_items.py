"""Adds items that joined after training to a run whose items have words.

    Recommender.load(W, items=[{"item": "B99", "title": "Matte lipstick", "words": "makeup lips"}])

With `config.data.item_words` an item's vector is its own row and the mean of its words' rows. What
training never saw has no row of its own: it takes the mean of the trained items' rows, and its
words are those that the caller gives, or those of its title, as far as training queries have them.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import UserError
from input_pipelines import ids
from input_pipelines.log import Log
from input_pipelines.names import lay_out

if TYPE_CHECKING:
    from experiments.restored import Restored

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


class WithNewItems:
    """Holds an opened run with items that joined after training; the run itself stays as it is.

    Args:
      restored: a run, as of `recommender.Recommender`.
      items: what is to join. Items that the run knows already stay as they are.

    Attributes:
      experiment, params, tables, tables_with_words: as of `experiments.restored.Restored`, for the
        larger catalogue.

    Raises:
      UserError: the run knows items by their ids alone, or an item is not described.
    """

    def __init__(self, restored: Restored, items: Iterable[Any]):
        experiment = restored.experiment
        most = experiment.config.data.get("item_words", 0)
        if not most or getattr(experiment, "item_words", None) is None:
            raise UserError(
                f"expected a run whose items have words (config.data.item_words) to add items to, "
                f"found one of {experiment.config.method} that knows items by their ids alone; "
                "train with item words, or on data with these items (launch.train --from)"
            )
        data = experiment.data
        known = set(data.log.item_ids.tolist())
        numbers = {word: row for row, word in enumerate(data.log.words) if row}
        joining: list[NewItem] = []
        words: list[list[int]] = []
        without: list[str] = []
        for one in parse(items):
            if one.item in known:
                continue
            own = [numbers[w] for w in data.query_words(one.words or one.title) if w in numbers]
            if own:
                joining.append(one)
                words.append(list(dict.fromkeys(own))[:most])
            else:
                without.append(one.item)
        if without:
            _LOG.warning(
                "%d new items have no word of the training queries and stay out: %s%s",
                *(len(without), ", ".join(without[:3]), ", ..." if len(without) > 3 else ""),
            )
        self.params, self.tables = restored.params, restored.tables
        whole = {name: np.asarray(table) for name, table in restored.tables_with_words.items()}
        size = data.log.num_items + 1
        row = np.asarray(restored.tables["item"])[1:size].mean(0, dtype=np.float64)
        vectors = [row + whole["word"][of_item].mean(0, dtype=np.float64) for of_item in words]
        new = np.array(vectors, np.float32).reshape(-1, whole["item"].shape[1])
        self.tables_with_words = whole | {"item": np.concatenate([whole["item"][:size], new])}
        self.experiment = copy.copy(experiment)
        self.experiment.data = copy.copy(data)
        self.experiment.data.log = with_items(data.log, joining)


def with_items(log: Log, items: list[NewItem]) -> Log:
    """Returns a log with further items after its own, which nobody has touched."""
    names = _after(log.item_id_offsets, log.item_id_bytes, [one.item for one in items])
    titles = [json.dumps({"title": one.title}, ensure_ascii=False) for one in items]
    before = log.fact_offsets, log.fact_bytes
    if before[0] is None:
        before = np.zeros(log.num_items + 2, np.int64), np.zeros(0, np.uint8)
    facts = _after(*before, titles)
    changes: dict[str, Any] = {}
    if log.text_offsets is not None:
        texts = _after(log.text_offsets, log.text_bytes, [""] * len(items))
        changes = {"text_offsets": texts[0], "text_bytes": texts[1]}
    return dataclasses.replace(
        log,
        item_id_offsets=names[0],
        item_id_bytes=names[1],
        fact_offsets=facts[0],
        fact_bytes=facts[1],
        **changes,
    )


def _after(offsets: Any, flat: Any, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Lays texts out after others, as `names.lay_out`."""
    ends, own = lay_out(texts)
    offsets, flat = np.asarray(offsets), np.asarray(flat)
    return np.concatenate([offsets, offsets[-1] + ends[2:]]), np.concatenate([flat, own])
