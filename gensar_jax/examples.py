"""Makes GenSAR's examples from a log: its vocabulary, the training mixture, and prompts to
evaluate.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import config_dict

from core import distributed
from core.errors import UserError
from gensar_jax import pieces, pseudo_queries
from gensar_jax.identifiers import LEVELS, PIECES, IdentifierTable
from gensar_jax.prompts import Catalogue, Event, Example, Prompts
from gensar_jax.settings import KINDS
from gensar_jax.vocabulary import Vocabulary
from input_pipelines import histories, search_task, segmenters
from input_pipelines.dataset import Dataset
from input_pipelines.log import Log
from input_pipelines.mixtures import Mixture
from input_pipelines.search_task import SearchExamples
from input_pipelines.splits import Examples

_BEHAVIOURS = {histories.CLICK: "<R_I>", histories.QUERY: "<S_Q>", histories.SEARCHED: "<S_I>"}


def chosen_codes(table: IdentifierTable, kinds: str) -> tuple[dict[str, np.ndarray], int]:
    """Returns (codes [V, L] of both kinds, shared levels): 'both' as they are, or one kind for
    both.
    """
    if kinds == "both":
        return table.codes, table.shared_levels
    codes = table.codes[kinds]
    return dict.fromkeys(KINDS, codes), codes.shape[1]


def _tokens(
    model: bytes, table: IdentifierTable, kinds: str
) -> tuple[Vocabulary, dict[str, np.ndarray]]:
    """Returns the vocabulary of a table and, by kind, its identifiers as tokens int32 [V+1, L].

    Raises:
      UserError: identifiers of other pieces than the model's.
    """
    if table.alphabet == LEVELS:
        codes, shared = chosen_codes(table, kinds)
        own = (table.num_codes,) * (codes["semantic"].shape[1] - shared)
        vocabulary = Vocabulary(
            model, shared=(table.num_codes,) * shared, semantic=own, collaborative=own
        )
        return vocabulary, _code_tokens(vocabulary, codes)
    of_pieces = table.alphabet == PIECES
    if of_pieces and table.pieces != pieces.digest(model):
        raise UserError(
            f"expected identifiers of the pieces {pieces.digest(model)}, found those of "
            f"{table.pieces}; make them again with the same config.vocabulary and data"
        )
    vocabulary = Vocabulary(
        model,
        shared=() if of_pieces else (table.num_codes,),
        semantic=(),
        collaborative=(),
        of_pieces=of_pieces,
    )
    tokens = vocabulary.sequences(table.codes["semantic"])
    return vocabulary, dict.fromkeys(KINDS, np.pad(tokens, ((1, 0), (0, 0))))


def _code_tokens(vocabulary: Vocabulary, codes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        kind: vocabulary.identifiers(np.pad(codes[kind], ((1, 0), (0, 0))), kind) for kind in KINDS
    }


class GenSARExamples:
    """Writes the examples of a log as tokens.

    Args:
      config: a resolved config of method 'gensar'.
      data: the data it names.
      table: identifiers of its items.

    Raises:
      UserError: items without any text, a setting that does not fit the data, or as `Mixture`.

    Attributes:
      vocabulary, prompts, mixture.
      texts_hash, pseudo_queries_hash: 16 hex digits each; the log's hash has neither.
      identifiers: by kind int32 [V+1, L], tokens; row 0 is padding's. Those of any length have an
        end and then padding.
      searches: the training searches.
      described: the items that an auxiliary task tells, since training events have shown them.
      query_pairs: these items' pseudo-queries, (item, query).
      sizes: how many examples each task has.
    """

    def __init__(self, config: config_dict.ConfigDict, data: Dataset, table: IdentifierTable):
        self._log, self._seed = data.log, config.seed
        self._train = data.splits.train
        self.searches = search_task.training_searches(data.log, data.splits)
        self._queries = pieces.each_once(self.searches)
        self._texts = data.log.item_texts()
        self.texts_hash = _hash(self._texts)
        self._shape = histories.HistoryShape(
            rec_length=config.data.rec_length,
            search_length=config.data.search_length if config.data.use_search else 0,
            clicks=config.data.clicks,
        )
        with distributed.first_alone():
            model = pieces.of_catalogue(config.vocabulary, data, self._queries)
        self._kinds = config.prompts.identifiers
        self.vocabulary, self.identifiers = _tokens(model, table, self._kinds)
        settings = config.prompts
        self._blind = settings.search_without
        self.prompts = Prompts(
            self.vocabulary,
            Catalogue(**self.identifiers),
            max_inputs=settings.max_inputs,
            max_targets=settings.max_targets,
            behaviour_tokens=settings.behaviour_tokens,
        )
        # What no training event has shown stays out of the auxiliary tasks.
        trained = np.zeros(data.log.num_items + 1, bool)
        trained[np.asarray(data.log.rec_items)[data.splits.training_rows]] = True
        trained[self.searches.item] = True
        self.described = [
            item
            for item, text in enumerate(self._texts, 1)
            if trained[item] and self.prompts.has_pieces(text)
        ]
        split = segmenters.segmenter(config.data.segmenter)
        if settings.pseudo_queries:
            numbers = {str(name): i for i, name in enumerate(data.log.item_ids.tolist()) if i}
            queries = pseudo_queries.read(settings.pseudo_queries, numbers)
        else:
            queries = pseudo_queries.from_texts(self._texts, split)
        self.query_pairs = [(item, query) for item, query in queries if trained[item]]
        self.pseudo_queries_hash = _hash(self.query_pairs)
        self.sizes = {
            "nrip": len(self._train),
            "nsqp": len(self._queries),
            "nsip": len(self.searches),
            "desc2id": len(KINDS) * len(self.described),
            "id2desc": len(KINDS) * len(self.described),
            "pseudo_query": len(self.query_pairs),
            **self._sizes_of_baselines(config.mixture),
        }
        self._phrasings = settings.phrasings
        self.mixture = Mixture(
            self.sizes, config.mixture.to_dict(), phrasings=settings.phrasings, seed=config.seed
        )

    def _sizes_of_baselines(self, rates: config_dict.ConfigDict) -> dict[str, int]:
        """Counts the examples of tasks that the config of a baseline alone has."""
        sizes = {"pseudo_search": len(self.query_pairs)}
        if {"next_text", "told_history"} & set(rates):
            self._told = {
                "next_text": [row for row in range(len(self._train)) if self._text_after(row)],
                "told_history": [row for row in range(len(self._train)) if self._texts_of(row)],
            }
            sizes |= {task: len(rows) for task, rows in self._told.items()}
        return {task: size for task, size in sizes.items() if task in rates}

    def _text_after(self, row: int) -> str:
        """Returns the text of a training example's item; '' where it has no pieces."""
        text = self._texts[int(self._log.rec_items[self._train.target_row[row]]) - 1]
        return text if self.prompts.has_pieces(text) else ""

    def _texts_of(self, row: int) -> list[str]:
        """Returns the texts of the items before a training example, oldest first."""
        items = [what for _, what in self.history(self._train, row) if isinstance(what, int)]
        texts = (self._texts[item - 1] for item in items)
        return [text for text in texts if self.prompts.has_pieces(text)]

    def with_items(self, log: Log, table: IdentifierTable) -> GenSARExamples:
        """Returns the same tokens for a log with further items, whose identifiers a table has."""
        changed = self.of_log(log)
        codes, _ = chosen_codes(table, self._kinds)
        changed.identifiers = _code_tokens(self.vocabulary, codes)
        changed.prompts = copy.copy(self.prompts)
        changed.prompts.catalogue = Catalogue(**changed.identifiers)
        return changed

    def mixed(self, rates: Mapping[str, int]) -> GenSARExamples:
        """Returns the same examples mixed at other rates.

        Raises:
          UserError: as `Mixture`.
        """
        changed = copy.copy(self)
        changed.mixture = Mixture(self.sizes, rates, phrasings=self._phrasings, seed=self._seed)
        return changed

    def of_log(self, log: Log) -> GenSARExamples:
        """Returns the same tokens for the examples of another log with these items."""
        changed = copy.copy(self)
        changed._log = log
        return changed

    def history(self, examples: Examples, row: int) -> list[Event]:
        """Events before an example, oldest first, by GenSAR's behaviours."""
        events = histories.events_before(
            self._log,
            int(examples.user[row]),
            int(examples.rec_end[row]),
            int(examples.search_end[row]),
            self._shape,
        )
        return [(_BEHAVIOURS[kind], what) for kind, what in events]

    def stream(self, start: int, stop: int) -> list[Example]:
        """Returns the training examples at places [start, stop) of the mixture's endless stream."""
        places = self.mixture.at(np.arange(start, stop))
        tasks = [self.mixture.tasks[number] for number in places.task.tolist()]
        return [
            self.training_example(*each)
            for each in zip(tasks, places.example.tolist(), places.phrasing.tolist(), strict=True)
        ]

    def training_example(self, task: str, row: int, phrasing: int) -> Example:
        """Returns one example of a task of the mixture."""
        prompts = self.prompts
        if task == "nrip":
            item = int(self._log.rec_items[self._train.target_row[row]])
            return prompts.next_item(self.history(self._train, row), item, phrasing)
        if task == "nsqp":
            query = histories.query_text(self._log, int(self._queries.target_row[row]))
            return prompts.next_query(self.history(self._queries, row), query, phrasing)
        if task == "nsip":
            return self._search_example(self.searches, row, phrasing)
        if task in ("pseudo_query", "pseudo_search"):
            item, query = self.query_pairs[row]
            if task == "pseudo_search":
                return prompts.next_searched_item([], query, item, phrasing)
            return prompts.pseudo_query(query, item, phrasing)
        if task == "next_text":
            row = self._told[task][row]
            return prompts.next_text(
                self.history(self._train, row), self._text_after(row), phrasing
            )
        if task == "told_history":
            row = self._told[task][row]
            item = int(self._log.rec_items[self._train.target_row[row]])
            return prompts.told_history(self._texts_of(row), item, phrasing)
        place, number = divmod(row, len(KINDS))
        item = self.described[place]
        write = {
            "desc2id": prompts.description_to_item,
            "id2desc": prompts.item_to_description,
        }[task]
        return write(self._texts[item - 1], item, KINDS[number], phrasing)

    def _search_example(self, examples: SearchExamples, row: int, phrasing: int = 0) -> Example:
        query = histories.query_text(self._log, int(examples.target_row[row]))
        return self.search(examples, row, query, int(examples.item[row]), phrasing)

    def search(
        self, examples: Examples, row: int, query: str, item: int, phrasing: int = 0
    ) -> Example:
        """Writes a search for `item` after an example's history, without what the run is blind
        to.
        """
        history = [] if self._blind == "history" else self.history(examples, row)
        shown_query = None if self._blind == "query" else query
        return self.prompts.next_searched_item(history, shown_query, item, phrasing)

    def evaluation_examples(self, examples: Examples) -> Iterator[Example]:
        """Prompts of the first phrasing with their targets."""
        for row in range(len(examples)):
            if isinstance(examples, SearchExamples):
                yield self._search_example(examples, row)
            else:
                item = int(self._log.rec_items[examples.target_row[row]])
                yield self.prompts.next_item(self.history(examples, row), item)

    def evaluation_inputs(self, examples: Examples) -> np.ndarray:
        """Prompts of the first phrasing, int32 [E, T], T the longest of them in steps of 32."""
        return padded([example.inputs for example in self.evaluation_examples(examples)])

    def forced(self, task: str) -> list[int]:
        """Returns the decoder's first tokens for 'recommendation' or 'search'."""
        return self.prompts.forced("<S_I>" if task == "search" else "<R_I>")

    def tokens_of(self, task: str) -> np.ndarray:
        """Returns int32 [V+1, L], the identifiers that a task decodes."""
        return self.identifiers["semantic" if task == "search" else "collaborative"]


def _hash(values: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value).encode() + b"\n")
    return digest.hexdigest()[:16]


def padded(rows: Sequence[Sequence[int]], multiple: int = 32) -> np.ndarray:
    """Returns int32 [E, T], T the longest row in steps of `multiple`."""
    width = -(-max(map(len, rows)) // multiple) * multiple
    array: Any = np.zeros((len(rows), width), np.int32)
    for place, row in enumerate(rows):
        array[place, : len(row)] = row
    return array
