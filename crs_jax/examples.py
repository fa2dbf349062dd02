"""Makes CRS's examples from a log: ids, vocabulary, contexts, prompts and answers."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import config_dict

from core import checksums, distributed, seeds, vectors
from core.errors import UserError
from core.mirrors import copied_run
from crs_jax import contexts, semantic_ids, teacher, traces, vocabulary
from crs_jax.contexts import ItemContext, UserContext
from crs_jax.embedding import open_encoder
from crs_jax.packing import Example
from crs_jax.semantic_ids import SemanticIds
from crs_jax.user_contexts import UserContexts
from crs_jax.vocabulary import Vocabulary, code_name
from input_pipelines import repeated_interactions, search_task, segmenters
from input_pipelines.dataset import Dataset
from input_pipelines.search_task import SearchExamples
from input_pipelines.splits import Examples
from text_encoders import named
from text_encoders.tokenizing import read_tokenizer

_LOG = logging.getLogger(__name__)
TFIDF = "tfidf_svd"
# Copies of the templates among the texts that a tokenizer is trained on.
_TEMPLATE_COPIES = 50


def fitted_prompts(
    users: Iterable[UserContext], words: Vocabulary, *, limit: int, reason: bool
) -> list[list[int]]:
    """Returns the tokens of `contexts.user_prompt`, and says how many contexts were cut to fit."""
    prompts = [contexts.user_prompt(user, words, limit=limit, reason=reason) for user in users]
    cut = sum(prompt.cut for prompt in prompts)
    if cut:
        _LOG.warning(
            "%d of %d queries and profiles are longer than config.prompts.max_prompt=%d tokens: "
            "the ends of their longest texts are cut",
            cut,
            len(prompts),
            limit,
        )
    return [prompt.tokens for prompt in prompts]


def check_alike(identities: Sequence[Any]) -> None:
    """Raises UserError where processes have other data, ids or tokenizers than the first."""
    other = [process for process, one in enumerate(identities) if one != identities[0]]
    if other:
        raise UserError(
            f"expected the same data, ids and tokenizer on all processes, found others on "
            f"{other}; let all share config.data_dir and config.cache_dir"
        )


class CRSExamples:
    """Writes the searches of a log as prompts and answers.

    Args:
      config: a resolved config of method 'crs'.
      data: the data it names.
      text_rows: rows of the checkpoint's embedding; None where the network starts from scratch.

    Raises:
      UserError: items without any text, no training searches, or a setting that does not fit.

    Attributes:
      ids: SemanticIds of items 1..V.
      vocabulary: text and id tokens.
      item_tokens: int32 [V+1, L], the ids as tokens; row 0 is padding's.
      contexts: UserContexts of the log.
      train: SearchExamples of the training corpus.
    """

    def __init__(self, config: config_dict.ConfigDict, data: Dataset, text_rows: int | None):
        self._config, self._data, self._log = config, data, data.log
        self._seed = config.seed
        self._titles: dict[str, str] | None = None
        # Items that had an id in the run that is extended, and that the log has no more.
        self._departed: tuple[list[str], np.ndarray] = ([], np.zeros((0, 0), np.int32))
        self.contexts = UserContexts(config.data, data, self.name)
        self.texts = ["", *data.log.item_texts()]
        every = search_task.training_searches(data.log, data.splits)
        if not len(every):
            raise UserError(
                f"expected training searches with words and clicks in {data.label}, found none; "
                "bring a log with searches"
            )
        self._every, self.sales = every, self._count_sales(every)
        self.train = every.take(self.chosen("train", len(every), config.data.train_examples))
        with distributed.first_alone():
            self.ids = self._make_ids()
        self._names = ["", *self._code_names()]
        with distributed.first_alone():
            self.vocabulary = Vocabulary(self._tokenizer(), self.ids.levels, text_rows)
        check_alike(distributed.of_all(self.identity()))
        tokens = self.vocabulary.identifiers(self.ids.codes)
        self.item_tokens = np.pad(tokens, ((1, 0), (0, 0)))

    def identity(self) -> list[Any]:
        """Tells the data, its size, the ids and the tokenizer, by their hashes."""
        text = hashlib.sha256(self.vocabulary.to_json().encode()).hexdigest()
        return [self._log.hash, len(self.train), self.ids.hash, text]

    def chosen(self, use: str, count: int, most: int) -> np.ndarray:
        if not 0 < most < count:
            return np.arange(count)
        rng = np.random.default_rng(seeds.stream(self._seed, use))
        return np.sort(rng.choice(count, most, replace=False))

    def _count_sales(self, searches: SearchExamples) -> np.ndarray:
        """Counts how often each item was clicked in training, [V+1]; nothing of a held-out user
        or event counts, and a click that its search holds too counts once.
        """
        clicked = np.asarray(self._log.rec_items)[self._data.splits.training_rows]
        # The same click on its own is at the time of its training search, so it trains too.
        only_searched = searches.item[~repeated_interactions.also_clicked(self._log, searches)]
        items = np.concatenate([clicked, only_searched])
        return np.bincount(items, minlength=self._log.num_items + 1)

    def item_vectors(self) -> np.ndarray:
        """Makes text vectors float32 [V, D] of the items, by `config.vectors`."""
        settings, texts = self._config.vectors, self.texts[1:]
        if settings.semantic != TFIDF:
            return named.item_vectors(
                texts, settings.semantic, key="vectors.semantic", open_one=open_encoder
            )
        factors = vectors.FactorConfig(
            width=settings.width,
            sketch_width=settings.sketch_width,
            sketch_share=settings.sketch_share,
            seed=self._seed,
        )
        return vectors.from_text(texts, segmenters.segmenter(self._config.data.segmenter), factors)

    def _make_ids(self) -> SemanticIds:
        """Makes ids once for the same settings, and stores them beside the prepared data.

        With `config.semantic_ids.extend`, returns the ids of that run, which new items join.
        """
        config = self._config
        content = [self._data.log.hash, str(config.seed), config.data.segmenter]
        content += [config[name].to_json(sort_keys=True) for name in ("vectors", "semantic_ids")]
        source = vectors.source_hash(config.vectors.semantic)
        content += [source] if source else []
        before = copied_run(config.semantic_ids.extend, "config.semantic_ids.extend")
        names = self.item_names()
        sizes, last = tuple(config.semantic_ids.codes), config.semantic_ids.last_codes
        recorded = semantic_ids.read_list(before) if before else None
        if recorded is not None:
            self._departed = recorded.departed(names)
            own = semantic_ids.load(before)
            same = list(recorded.rows)[: len(names)] == names and len(own.codes) == len(names)
            if same and own.levels[:-1] == sizes and last in (0, own.levels[-1]):
                return own
            content.append(json.dumps([list(recorded.rows), recorded.codes.tolist()]))
        digest = hashlib.sha256("\n".join(content).encode()).hexdigest()[:12]
        folder = self._data.beside(f"semantic-ids-{digest}")
        # A kill may leave the folder alone.
        if not os.path.exists(os.path.join(folder, semantic_ids.FILE)):
            points = self.item_vectors()
            if recorded is None:
                ids = semantic_ids.fit(points, sizes, last_codes=last, seed=config.seed)
            else:
                ids = semantic_ids.extend(recorded, names, points, sizes, last_codes=last)
            os.makedirs(folder, exist_ok=True)
            ids.save(folder)
        return semantic_ids.load(folder)

    def save_ids(self, folder: str) -> None:
        """Writes the ids, and a list of them by name that `semantic_ids.extend` reads."""
        items, codes = self._departed
        every = np.concatenate([self.ids.codes, codes]) if items else self.ids.codes
        self.ids.save(folder)
        # Last: whoever finds the list takes the ids for whole.
        semantic_ids.write_list(folder, [*self.item_names(), *items], every)

    def inputs_hash(self) -> str:
        """Returns 16 hex digits over the training searches and the items' texts and facts.

        The log's hash covers neither. Subsets name searches by their place among them.
        """
        digest = hashlib.sha256(np.ascontiguousarray(self.train.target_row, np.int64).tobytes())
        for item in range(1, len(self.texts)):
            said = [self.texts[item], self._log.facts(item)]
            digest.update(json.dumps(said, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def check_room(self) -> None:
        """Raises UserError where the limits of prompts hold nothing of an item."""
        limits, context = self._config.prompts, self.item_context(1)
        contexts.item_prompt(context, self.vocabulary, limit=limits.max_prompt)
        contexts.item_answer(context, self.vocabulary, limit=limits.max_answer - 1)

    def item_names(self) -> list[str]:
        """Names of items 1..V in their source."""
        return [str(item) for item in self._log.item_ids[1:]]

    def _code_names(self) -> Iterable[str]:
        for codes in self.ids.codes.tolist():
            yield "".join(code_name(level, code) for level, code in enumerate(codes))

    def _tokenizer(self):
        """Reads the tokenizer by its path, or the checkpoint's; or trains one on catalogue and
        training queries once.
        """
        settings, checkpoint = self._config.vocabulary, self._config.model.checkpoint
        if settings.tokenizer:
            return read_tokenizer(settings.tokenizer)
        if checkpoint:  # its rows are of its own tokens alone
            folder = checkpoint if os.path.isdir(checkpoint) else os.path.dirname(checkpoint)
            return read_tokenizer(os.path.join(folder, "tokenizer.json"))
        # What the texts depend on: writing them all for their hash would take every start minutes.
        content = [self._log.hash, str(self._seed), self._config.data.to_json(sort_keys=True)]
        content += contexts.template_texts()
        content += [trace.reasoning for trace in self._read_traces() or ()]
        digest = hashlib.sha256("\n".join(content).encode()).hexdigest()[:12]
        path = self._data.beside(f"tokenizer-{settings.size}-{digest}.json")
        if not checksums.is_saved(path):
            trained = vocabulary.train_tokenizer(self._tokenizer_texts(), settings.size)
            checksums.save(path, trained.to_str(pretty=True).encode())
        checksums.verify(path, f"remove {path} and the file of its checksum")
        return read_tokenizer(path)

    def _tokenizer_texts(self) -> list[str]:
        queries = sorted({self.query(row) for row in self.train.target_row.tolist()})
        hours = {self.contexts.time(self._log.asked_at(row)) for row in self.train.target_row}
        told = [self.teacher_reasoning(row) for row in range(len(self.train))]
        told += sorted(hour for hour in hours if hour)
        told += [trace.reasoning for trace in self._read_traces() or ()]
        return [*self.texts, *queries, *contexts.template_texts() * _TEMPLATE_COPIES, *told]

    def query(self, search: int) -> str:
        """Returns the text of a search."""
        return self.contexts.query(search)

    def item_context(self, item: int) -> ItemContext:
        """Returns what the log knows of an item; its text stands in for a missing title."""
        facts = {"title": self.texts[item]} | self._log.facts(item)
        return ItemContext(**facts, sales=int(self.sales[item]))

    def name(self, item: int) -> str:
        """Returns the id of an item as text."""
        return self._names[item]

    def asked(self, line: str) -> tuple[str, UserContext]:
        """Reads a line as `UserContexts.asked` does."""
        return self.contexts.asked(line)

    def context_of(self, examples: Examples, row: int) -> UserContext:
        """Returns the context of an example, as `UserContexts.context_of`."""
        return self.contexts.context_of(examples, row)

    def prompts(self, examples: Examples, *, reason: bool) -> list[list[int]]:
        """Returns the prompts of search examples; texts are cut where one alone is too long.

        Raises:
          UserError: as `contexts.user_prompt`.
        """
        limit = self._config.prompts.max_prompt
        contexts_of = (self.context_of(examples, row) for row in range(len(examples)))
        return fitted_prompts(contexts_of, self.vocabulary, limit=limit, reason=reason)

    def answer(self, item: int, reasoning: Sequence[int] | None = None) -> list[int]:
        """Returns the tokens after a prompt: with reasoning also that and its end, then id and
        end.
        """
        words = self.vocabulary
        said = [] if reasoning is None else [*reasoning, words.end_think]
        return [*said, *self.item_tokens[item].tolist(), words.end]

    def alignment(self) -> list[Example]:
        """Makes item -> id, id -> item, context -> id (3.1.2), of items that training has shown."""
        words, settings = self.vocabulary, self._config.prompts
        examples = []
        for item in np.flatnonzero(self.sales > 0).tolist():
            context = self.item_context(item)
            asked = contexts.item_prompt(context, words, limit=settings.max_prompt)
            examples.append(Example(asked, self.answer(item)))
            told = contexts.item_answer(context, words, limit=settings.max_answer - 1)
            name = words.encode(contexts.id_to_item_prompt(self.name(item)))
            examples.append(Example(name, [*told, words.end]))
        prompts = self.prompts(self.train, reason=False)
        for prompt, item in zip(prompts, self.train.item.tolist(), strict=True):
            examples.append(Example(prompt, self.answer(item)))
        return examples

    def teacher_reasoning(self, row: int) -> str:
        """Writes what the template teacher says about a training example."""
        examples = self.train
        earlier = [event.query for event in self.context_of(examples, row).events if event.query]
        title = self.texts[int(examples.item[row])]
        query = self.query(int(examples.target_row[row]))
        return traces.TemplateTeacher().reasoning(query, earlier, title, row)

    def distillation(self) -> list[tuple[int, list[int]]]:
        """Returns (training example, tokens of its reasoning) of the teacher of `config.distill`.

        Traces that hold the target's title or an id are left out.

        Raises:
          UserError: a trace of no training search's click, or none left.
        """
        read = self._read_traces()
        if read is not None:
            told = self._matched(read)
        else:
            told = [(row, self.teacher_reasoning(row)) for row in self.distilled().tolist()]
        usable = self.usable(told)
        _LOG.info(
            "traces: %d of %d left without the target's title and ids", len(usable), len(told)
        )
        if not usable:
            raise UserError(
                f"expected traces that do not tell the target, found none among {len(told)}; bring "
                "others in config.distill.traces"
            )
        return usable

    def _read_traces(self) -> list[traces.Trace] | None:
        """Reads the file of traces of `config.distill`; None where it names none."""
        settings = self._config.get("distill")
        if settings is None:  # a method that writes no reasoning
            return None
        if settings.from_data:
            path = os.path.join(self._data.raw_dir, traces.BESIDE_DATA)
            return traces.read_traces(path, "bring it or pass config.distill.from_data=False")
        return traces.read_traces(settings.traces) if settings.traces else None

    def distilled(self) -> np.ndarray:
        """Returns the training examples that a teacher is asked about, int [E]."""
        return self.chosen("distill", len(self.train), self._config.distill.examples)

    def usable(self, told: Iterable[tuple[int, str]]) -> list[tuple[int, list[int]]]:
        """Returns (training example, tokens) of traces that hold neither the target's title nor
        an id.
        """
        most = self._config.prompts.max_reasoning - 1
        return [
            (row, self.vocabulary.encode(text)[:most])
            for row, text in told
            if not traces.leaks(text, self.texts[int(self.train.item[row])])
        ]

    def in_words(self, row: int) -> tuple[str, list[str], str]:
        """Tells (query, what the user did before, oldest first, the target's title) of an
        example.
        """
        if self._titles is None:
            self._titles = dict(zip(self._names, self.texts, strict=True))
        titles, context = self._titles, self.context_of(self.train, row)
        events = []
        for event in context.events:
            chosen = ", ".join(teacher.quoted(titles[name]) for name in event.clicked)
            parts = [f"searched for {teacher.quoted(event.query)}"] if event.query else []
            parts += [f"chose {chosen}"] if chosen else []
            events += [" and ".join(parts)] if parts else []
        return context.query, events, self.texts[int(self.train.item[row])]

    def _matched(self, read: Sequence[traces.Trace]) -> list[tuple[int, str]]:
        """Returns (training example, reasoning) of traces; examples that are not chosen, and those
        of users without any that train, are skipped.
        """
        rows: dict[tuple[str, str, str], int] = {}
        for row, key in enumerate(self._keys(self.train)):
            rows.setdefault(key, row)
        matched: list[tuple[int, str]] = []
        missing: list[traces.Trace] = []
        for trace in read:
            fitting = [rows[name] for name in self._keys_of(trace) if name in rows]
            if fitting:
                matched.append((fitting[0], trace.reasoning))
            else:
                missing.append(trace)
        held_out = self._users_held_out() if missing else set()
        missing = [trace for trace in missing if trace.user not in held_out]
        known = set(self._keys(self._every)) if missing else set()
        for trace in missing:
            if known.isdisjoint(self._keys_of(trace)):
                raise UserError(
                    f"expected traces of training examples, found user {trace.user!r} with query "
                    f"{trace.query[:40]!r} and item {trace.item!r}, which is none; drop that trace"
                )
        if missing:
            _LOG.info(
                "traces: %d of %d are of examples that config.data.train_examples leaves out",
                *(len(missing), len(read)),
            )
        return matched

    def _users_held_out(self) -> set[str]:
        """Returns the names of users of the log of whom nothing trains."""
        held_out = ~self._data.trained_users
        held_out[0] = False
        held_out[self._every.user] = False
        return set(map(str, self._log.user_ids[np.flatnonzero(held_out)]))

    def _keys(self, examples: SearchExamples) -> Iterator[tuple[str, str, str]]:
        """Returns user, query and item of examples, by the source's names."""
        log = self._log
        for row in range(len(examples)):
            yield (
                str(log.user_ids[examples.user[row]]),
                self.query(int(examples.target_row[row])),
                str(log.item_ids[examples.item[row]]),
            )

    def _keys_of(self, trace: traces.Trace) -> list[tuple[str, str, str]]:
        """Returns a trace's key with its query as it stands, and as the log would write it."""
        queries = (trace.query, self._data.query_text(trace.query))
        return [(trace.user, query, trace.item) for query in queries]
