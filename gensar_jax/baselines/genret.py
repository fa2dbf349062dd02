"""Learns GenRet's identifiers: documents are auto-encoded as codes by the network that retrieves.

Paper: Sun et al., "Learning to Tokenize for Generative Retrieval" (NeurIPS 2023). One T5 reads
documents and queries; h_t(x) is its decoder's state after the codes before place t, and the code at
place t is the row of a table E_t with the largest product with it. Codes are learnt one place after
another, E_1 to E_(t-1) frozen, each in two stages: without codes, to have vectors from which E_t
starts as cluster centres; then with them:

  L = 1/2 contrast + 1/2 code + 1/2 fixed + 1/10 reconstruction

contrast: h_t(q) picks h_t(d) of its document in the batch. code: h_t of both picks the document's
code under the constraint that all codes of the batch are equally frequent (Sinkhorn). fixed: h_s of
both pick the codes before. reconstruction: the code's row picks h_t(d) in the batch. The first
stage has no code and reconstruction. Batches are of documents that share their codes before t. A
place ends with the codes that are equally frequent among such documents, as it was trained to. At
the end a code is appended that counts equal documents; the variant `genret` of configs/gensar.py
goes on with this network, as released.

Settled here: a query is a training search or a pseudo-query, of an item that training shows; all
items get codes. As released, an epoch has every such document once, with a random one of its
queries. E_t are the T5's own rows for the codes' tokens, which its decoder also reads, and products
are scaled by D^-1/2 as in its head, so that the beam of the trained network is every other method's
(the released code has tables of their own). Sinkhorn's products are not scaled, as there. Nothing
is dropped out (configs/genret_identifiers.py says why). Clusters are balanced by Sinkhorn, where
the released code bounds their sizes, and lose their part along the mean of all documents. An item
without text is what its empty prompt says: such items have the same codes and are counted.

Axis letters: P pairs of a query and an item, V items, B batch, L places, K codes, D width, T
prompt.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from core import distributed
from core.errors import UserError
from core.experiment import LoopSettings, WriterSettings
from core.loop import LoopConfig, run_stage
from core.settings import Section, build
from core.workdir import Workdir
from gensar_jax import identifier_network, pieces, pseudo_queries
from gensar_jax.baselines.genret_levels import (
    EMBEDDING,
    LevelSettings,
    LevelTask,
    Pairs,
    balanced_below,
    first_table,
)
from gensar_jax.examples import padded
from gensar_jax.fitted_identifier_experiment import TableExperiment
from gensar_jax.identifiers import IdentifierTable, colliding_items, collision_rate, numbered
from gensar_jax.prompts import Catalogue, Prompts
from gensar_jax.rqvae import SOURCES
from gensar_jax.settings import (
    Described,
    NetworkSettings,
    PromptSettings,
    VocabularySettings,
    network_values,
)
from gensar_jax.t5 import checkpoints
from gensar_jax.t5.config import T5Config
from gensar_jax.t5.network import Transformer
from gensar_jax.vocabulary import Vocabulary
from input_pipelines import histories, search_task, segmenters
from input_pipelines.dataset import Dataset


class GenRetIdentifiers(TableExperiment):
    """Trains a T5 to write the items as codes, and keeps it beside them.

    Raises:
      UserError: as `TableExperiment`; a T5 whose head is not its embedding; no query.
    """

    own_sections: ClassVar[Described] = {"levels": (LevelSettings,)}
    shared_sections: ClassVar[Described] = {
        "vocabulary": (VocabularySettings,),
        "prompts": (PromptSettings,),
        "model": (NetworkSettings, T5Config),
    }

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        return {
            **super().sections(config),
            "model": Section((NetworkSettings, T5Config), network_values),
            "loop": Section((LoopSettings, WriterSettings)),
        }

    @classmethod
    def completed(cls, config: config_dict.ConfigDict) -> config_dict.ConfigDict:
        return pieces.completed(config)

    def __init__(self, config: config_dict.ConfigDict, data: Dataset):
        super().__init__(config, data)
        self._levels = LevelSettings(**config.levels.to_dict())
        shape = build(
            T5Config, config.model.to_dict(), section="model", more=network_values(config)
        )
        if not shape.logits_via_embedding:
            raise UserError(
                f"expected a T5 whose head is its embedding for {config.method}, found "
                f"config.model.size={config.model.size}; set a size of version 1.0"
            )
        places = range(1, self._levels.levels + 1)
        self.stages = tuple(
            name for place in places for name in (f"place_{place}_without_codes", f"place_{place}")
        )
        self._shape = shape

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """Returns the tokens of the run that reads these identifiers."""
        searches = search_task.training_searches(self.data.log, self.data.splits)
        with distributed.first_alone():
            once = pieces.each_once(searches)
            model = pieces.of_catalogue(self.config.vocabulary, self.data, once)
        sizes = (self._levels.codes,) * (self._levels.levels + 1)
        return Vocabulary(model, shared=sizes, semantic=(), collaborative=())

    @functools.cached_property
    def pairs(self) -> Pairs:
        """Returns what the codes are learnt from.

        Raises:
          UserError: no search or pseudo-query of an item that training shows.
        """
        log, config = self.data.log, self.config
        nothing = np.zeros((log.num_items + 1, self._levels.levels + 1), np.int32)
        prompts = Prompts(
            self.vocabulary,
            Catalogue(nothing, nothing),
            max_inputs=config.prompts.max_inputs,
            max_targets=config.prompts.max_targets,
            behaviour_tokens=config.prompts.behaviour_tokens,
        )
        searches = search_task.training_searches(log, self.data.splits)
        shown = np.zeros(log.num_items + 1, bool)
        shown[np.asarray(log.rec_items)[self.data.splits.training_rows]] = True
        shown[searches.item] = True
        asked = {
            (histories.query_text(log, int(row)), int(item))
            for row, item in zip(searches.target_row, searches.item, strict=True)
        }
        texts = log.item_texts()
        if config.prompts.pseudo_queries:
            numbers = {str(name): i for i, name in enumerate(log.item_ids.tolist()) if i}
            made = pseudo_queries.read(config.prompts.pseudo_queries, numbers)
        else:
            split = segmenters.segmenter(config.data.segmenter)
            made = pseudo_queries.from_texts(texts, split)
        asked |= {(query, item) for item, query in made if shown[item]}
        if len(asked) < 2:
            raise UserError(
                f"expected searches or pseudo-queries of items that training shows in "
                f"{self.data.label}, found {len(asked)}; use another method's identifiers"
            )
        ordered = sorted(asked)
        queries = [prompts.next_searched_item([], query, item).inputs for query, item in ordered]
        documents = [prompts.document(text) for text in texts]
        items = np.array([item - 1 for _, item in ordered], np.int32)
        return Pairs(padded(queries), items, padded(documents))

    def check_data(self) -> None:
        """Makes the pairs, and reads the checkpoint to start from."""
        if len(self.pairs.documents) < self._levels.codes:
            raise UserError(
                f"expected at least {self._levels.codes} items, the codes of a place, in "
                f"{self.data.label}, found {len(self.pairs.documents)}; set fewer codes"
            )
        if self.config.model.checkpoint:
            self._first_params()

    def run(self, workdir: Workdir) -> None:
        """Learns one place after another, or goes on, and writes the table once.

        Of several processes all learn, and the first writes.
        """
        if distributed.by_first(lambda: bool(workdir.read_results()["rows"])):
            return
        self.check_data()
        settings, pairs, seed = self._levels, self.pairs, self.config.seed
        network = self._network()
        vocabulary = self.vocabulary
        rows = np.array(
            [
                [vocabulary.code_token("M", place, code) for code in range(settings.codes)]
                for place in range(1, settings.levels + 1)
            ]
        )
        codes = np.zeros((len(pairs.documents), 0), np.int32)
        params, metrics = None, {}
        for place in range(1, settings.levels + 1):
            make = functools.partial(
                LevelTask,
                place,
                network=network,
                rows=rows,
                pairs=pairs,
                before=codes,
                settings=settings,
                seed=seed,
            )
            task = make(with_codes=False, initial=self._going_on(params))
            params = run_stage(task, self._loop(task, 1), workdir).state["params"]
            vectors = task.vectors(params, pairs.documents, codes)
            table = first_table(vectors, codes, settings.codes, seed + place)
            task = make(
                with_codes=True, initial=self._going_on(with_rows(params, rows[place - 1], table))
            )
            state = run_stage(task, self._loop(task, settings.evals), workdir).state
            params = state["params"]
            for name, value in task.evaluate(state).items():
                metrics[name.replace("/", f"_{place}/")] = value
            vectors = task.vectors(params, pairs.documents, codes)
            products = task.products(params, vectors)
            own = balanced_below(products, codes, settings.sinkhorn_iterations)
            codes = np.column_stack([codes, own])
        metrics |= {
            "collision_rate": collision_rate(codes),
            "colliding_items": colliding_items(codes),
        }
        table_of_codes = self._table(codes)

        def leave() -> None:
            identifier_network.save(workdir.path, params, vocabulary.digest)
            self.write(workdir, table_of_codes, metrics)

        distributed.by_first(leave)

    def _going_on(self, params: Any) -> Callable[[], Any]:
        """Returns what gives the parameters of a stage's start; None stands for the first's."""
        return self._first_params if params is None else lambda: params

    def _table(self, codes: np.ndarray) -> IdentifierTable:
        """Returns the table of learnt codes [V, L], with the code that counts equal ones."""
        num_codes = self._levels.codes
        unique = numbered(codes, num_codes)
        if unique is codes:
            unique = np.column_stack([codes, np.zeros(len(codes), np.int32)])
        if unique.shape[1] > codes.shape[1] + 1:
            raise UserError(
                f"expected at most {num_codes} items to share the codes that were learnt, found "
                f"{colliding_items(codes):.1%} of the items with another's and more than that of "
                "one identifier; set more codes, levels or updates in another --workdir"
            )
        return IdentifierTable(
            dict.fromkeys(SOURCES, unique),
            unique.shape[1],
            num_codes,
            self.data.log.hash,
            self.data.training_split,
        )

    def _network(self) -> Transformer:
        return Transformer(dataclasses.replace(self._shape, vocab_size=self.vocabulary.size))

    def _first_params(self) -> Any:
        """Returns the parameters of `config.model.checkpoint`, or random ones."""
        network, key = self._network(), jax.random.key(self.config.seed)
        if folder := self.config.model.checkpoint:
            return checkpoints.load(folder, network.config, self.vocabulary.text_rows, key)
        token = jnp.ones((1, 1), jnp.int32)
        init = functools.partial(network.init, enable_dropout=False)
        return jax.jit(init)(key, token, token, token)["params"]

    def _loop(self, task: LevelTask, evals: int) -> LoopConfig:
        return LoopConfig.fixed_length(
            task.max_steps,
            evals=evals,
            checkpoint_every=self.config.loop.checkpoint_every,
            log_every=self.config.loop.log_every,
            learning_rate=self._levels.learning_rate,
        )


def with_rows(params: Any, rows: np.ndarray, table: np.ndarray) -> Any:
    """Returns the parameters with rows int [K] of the embedding replaced by a table [K, D]."""
    embedding = params[EMBEDDING[0]][EMBEDDING[1]].at[rows].set(table)
    return {**params, EMBEDDING[0]: {EMBEDDING[1]: embedding}}
