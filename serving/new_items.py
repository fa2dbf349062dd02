"""Adds items that joined after training to a run whose items have words.

    Recommender.load(W, items=[{"item": "B99", "title": "Matte lipstick", "words": "makeup lips"}])

With `config.data.item_words` an item's vector is its own row and the mean of its words' rows. What
training never saw has no row of its own: it takes the mean of the trained items' rows, and its
words are those that the caller gives, or those of its title, as far as training queries have them.
GenSAR's quantizers give a new item identifiers by its title and words.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import UserError
from input_pipelines.log import Log
from input_pipelines.names import lay_out
from serving.item_descriptions import (
    NewItem,
    known_words,
    parse,
    vectors_of,
    warn_of_items_without,
)

if TYPE_CHECKING:
    from experiments.restored import Restored


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
        joining, words = known_words(
            parse(items),
            set(data.log.item_ids.tolist()),
            data.query_words,
            {word: row for row, word in enumerate(data.log.words) if row},
            most,
        )
        self.params, self.tables = restored.params, restored.tables
        whole = {name: np.asarray(table) for name, table in restored.tables_with_words.items()}
        size = data.log.num_items + 1
        new = vectors_of(words, mean_row(restored), whole["word"])
        self.tables_with_words = whole | {"item": np.concatenate([whole["item"][:size], new])}
        self.experiment = copy.copy(experiment)
        self.experiment.data = copy.copy(data)
        self.experiment.data.log = with_items(data.log, joining)


class WithNewIdentifiers:
    """Holds an opened run of GenSAR with items that its quantizers name; otherwise as
    `WithNewItems`.

    An item is told to the quantizers by its title and its words.

    Raises:
      UserError: an item is not described, or as `GenSARExperiment.with_items`.
    """

    def __init__(self, restored: Restored, items: Iterable[Any]):
        experiment = restored.experiment
        log = experiment.data.log
        known = set(log.item_ids.tolist())
        new = [one for one in parse(items) if one.item not in known]
        texts = {one.item: f"{one.title} {one.words}".strip() for one in new}
        warn_of_items_without([name for name, text in texts.items() if not text], "text")
        joining = [one for one in new if texts[one.item]]
        self.params, self.tables = restored.params, restored.tables
        self.tables_with_words = restored.tables_with_words
        self.experiment = experiment
        if joining:
            # Where the run's own config says, not the copy of the table that it is opened with.
            folder = restored.workdir.read_config().get("identifiers")
            own = [texts[one.item] for one in joining]
            self.experiment = experiment.with_items(with_items(log, joining), own, folder or None)


def mean_row(restored: Restored) -> np.ndarray:
    """Returns the mean float64 [D] of the items' own rows, without their words."""
    size = restored.experiment.data.log.num_items + 1
    return np.asarray(restored.tables["item"])[1:size].mean(0, dtype=np.float64)


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
