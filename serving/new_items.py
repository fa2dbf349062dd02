"""Adds items that joined after training to a run whose items have words.

    Recommender.load(W, items=[{"item": "B99", "title": "Matte lipstick", "words": "makeup lips"}])

With `config.data.item_words` an item's vector is its own row and the mean of its words' rows. What
training never saw has no row of its own: it takes the mean of the trained items' rows, and its
words are those that the caller gives, or those of its title, as far as training queries have them.
GenSAR and the floors of search read a new item's title and words as text.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import UserError
from crs_jax.decoder_experiment import DecoderExperiment
from gensar_jax.experiment import GenSARExperiment
from input_pipelines.log import Log
from input_pipelines.names import lay_out
from lcrsr.search_baselines.experiment import TEXT_KINDS, SearchBaselineExperiment
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
            method, remedy = experiment.config.method, "train with item words, or "
            how = "that knows items by their ids alone"
            if isinstance(experiment, DecoderExperiment):
                how, remedy = "whose items have the identifiers of its training", "train "
            raise UserError(
                f"expected a run whose items have words (config.data.item_words) to add items to, "
                f"found one of {method} {how}; {remedy}on data with these items (launch.train "
                "--from)"
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


class WithNewTexts:
    """Holds an opened run that reads items' texts, with further items; otherwise as `WithNewItems`.

    An item is told by its title and its words. GenSAR's quantizers name it, and the floors of
    search that compare texts (BM25, TF-IDF and its factors) are fitted anew with it.

    Raises:
      UserError: an item is not described, the floor knows clicks alone, or as
        `GenSARExperiment.with_items`.
    """

    def __init__(self, restored: Restored, items: Iterable[Any]):
        experiment = restored.experiment
        data = experiment.data
        known = set(data.log.item_ids.tolist())
        new = [one for one in parse(items) if one.item not in known]
        warn_of_items_without([one.item for one in new if not _text_of(one)], "text")
        joining = [one for one in new if _text_of(one)]
        self.params, self.tables = restored.params, restored.tables
        self.tables_with_words = restored.tables_with_words
        self.experiment = experiment
        kind = experiment.config.model.get("kind")
        if isinstance(experiment, SearchBaselineExperiment) and kind not in TEXT_KINDS:
            raise UserError(
                f"expected a floor of search that compares texts ({', '.join(TEXT_KINDS)}) to add "
                f"items to, found {kind}, which knows the items of its clicks alone; pass another "
                "--workdir"
            )
        if not joining:
            return
        log = with_items(data.log, joining)
        if isinstance(experiment, SearchBaselineExperiment):
            data = copy.copy(data)
            data.log = log
            self.experiment = type(experiment)(experiment.config, data)
            return
        # Where the run's own config says, not the copy of the table that it is opened with.
        folder = restored.workdir.read_config().get("identifiers")
        texts = [_text_of(one) for one in joining]
        self.experiment = experiment.with_items(log, texts, folder or None)


def with_new_items(restored: Restored, items: Iterable[Any]) -> WithNewItems | WithNewTexts:
    """Returns an opened run with items that joined after training.

    Raises:
      UserError: as `WithNewItems` and `WithNewTexts`.
    """
    by_text = isinstance(restored.experiment, GenSARExperiment | SearchBaselineExperiment)
    return WithNewTexts(restored, items) if by_text else WithNewItems(restored, items)


def _text_of(item: NewItem) -> str:
    return f"{item.title} {item.words}".strip()


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
        texts = _after(log.text_offsets, log.text_bytes, list(map(_text_of, items)))
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
