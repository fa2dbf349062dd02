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
items get codes. E_t are the T5's own rows for the codes' tokens, which its decoder also reads, and
products are scaled by D^-1/2 as in its head, so that the beam of the trained network is every other
method's (the released code has tables of their own). Sinkhorn's products are not scaled, as there.
Other queries of an item in a batch are no negatives of it. Clusters are balanced by Sinkhorn, where
the released code bounds their sizes, and lose their part along the mean of all documents. An item
without text is what its empty prompt says: such items have the same codes and are counted.

Axis letters: P pairs of a query and an item, V items, B batch, L places, K codes, D width, T
prompt.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special
from ml_collections import config_dict

from core import distributed
from core.errors import UserError
from core.experiment import LoopSettings, WriterSettings
from core.loop import LoopConfig, run_stage
from core.partitioning import Partition
from core.schedules import rate_at
from core.settings import Count, Positive, Rate, Section, Settings, Weight, at_least, build
from core.workdir import Workdir
from gensar_jax import identifier_network, kmeans, pieces, pseudo_queries, quantizer
from gensar_jax.examples import padded
from gensar_jax.fitted_identifier_experiment import TableExperiment
from gensar_jax.identifiers import (
    IdentifierTable,
    balanced_codes,
    colliding_items,
    collision_rate,
    numbered,
)
from gensar_jax.joint_task import descent
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

_LOG = logging.getLogger(__name__)
_EMBEDDING = ("token_embedder", "embedding")
# Items that a forward pass takes at once, that clusters are fitted to, and their Sinkhorn.
_CHUNK, _FIT_ITEMS, _ROUNDS, _EPSILON = 256, 16_384, 10, 0.01
# Pairs that an evaluation looks at.
_LOOKED_AT = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class LevelSettings(Settings):
    """Says how codes are learnt.

    Attributes:
      levels: L, learnt codes of an identifier; one more counts equal ones.
      codes: K.
      batch_size: pairs an update; at most all.
      first_updates: of the stage without codes, at each place.
      updates: of the stage with codes, at each place.
      evals: over the latter.
      warmup: share of a stage's updates in which the learning rate rises; then it falls as a
        cosine.
      weight_decay, clip_norm, relative_rate: as of `joint_task.JointConfig`.
      sinkhorn_iterations: that balance the codes of a batch.
      contrast, code, fixed, reconstruction: weights of the four losses.
    """

    levels: Count
    codes: Annotated[int, at_least(2)]
    batch_size: Annotated[int, at_least(2)]
    first_updates: Count
    updates: Count
    evals: Count
    learning_rate: Weight
    warmup: Rate
    weight_decay: Weight
    clip_norm: Positive
    relative_rate: bool
    sinkhorn_iterations: Count
    contrast: Weight
    code: Weight
    fixed: Weight
    reconstruction: Weight


class Pairs(NamedTuple):
    """Holds queries, the items that they are to find, and the items' prompts.

    Attributes:
      queries: int32 [P, T].
      items: int32 [P], from 0 to V-1.
      documents: int32 [V, T].
    """

    queries: np.ndarray
    items: np.ndarray
    documents: np.ndarray


def balanced_plan(products: jax.Array, iterations: int) -> jax.Array:
    """Returns Sinkhorn's plan of exp(products): rows sum to 1, columns to B/K.

    Args:
      products: float32 [B, K], from which each code's mean is taken first.
    """
    points, codes = products.shape
    start = products - products.mean(0)

    def balance(_: Any, plan: jax.Array) -> jax.Array:
        plan = plan - jax.nn.logsumexp(plan, 0) + np.log(points / codes)
        return plan - jax.nn.logsumexp(plan, 1, keepdims=True)

    return jnp.exp(jax.lax.fori_loop(0, iterations, balance, start))


def balanced_below(products: np.ndarray, before: np.ndarray, iterations: int) -> np.ndarray:
    """Returns codes int32 [V] that are equally frequent among items with the same codes before.

    Args:
      products: float [V, K], with the rows of a table.
      before: int [V, t-1], codes before.
      iterations: of Sinkhorn, as in `balanced_plan`.
    """
    codes = np.zeros(len(products), np.int32)
    _, group = np.unique(before, axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    for items in np.split(order, np.cumsum(np.bincount(group.ravel()))[:-1]):
        plan = products[items].astype(np.float64)
        if len(items) > 1:
            plan -= plan.mean(0)
            share = np.log(len(items) / plan.shape[1])
            for _ in range(iterations):
                plan += share - scipy.special.logsumexp(plan, 0)
                plan -= scipy.special.logsumexp(plan, 1, keepdims=True)
        codes[items] = plan.argmax(1)
    return codes


def in_batch(products: jax.Array, items: jax.Array) -> jax.Array:
    """Returns the cross-entropy, in nats, of each row's own column.

    Args:
      products: float32 [B, B].
      items: int [B]; other columns of a row's own item do not count.
    """
    own = jnp.eye(len(items), dtype=bool)
    counts = own | (items[:, None] != items)
    losses = jax.nn.logsumexp(products, 1, where=counts) - jnp.diagonal(products)
    return losses.mean()


def level_losses(
    queries: jax.Array,
    documents: jax.Array,
    tables: jax.Array,
    before: jax.Array,
    items: jax.Array,
    iterations: int,
) -> dict[str, jax.Array]:
    """Returns the four losses at place t, by the names of their weights in `LevelSettings`.

    Args:
      queries, documents: float32 [B, t, D], states of queries and of their documents.
      tables: float32 [t, K, D], E_1 to E_t.
      before: int32 [B, t-1], the documents' codes before place t.
      items: int [B], which documents these are.
      iterations: of Sinkhorn.
    """
    scale = documents.shape[-1] ** -0.5
    query, document = queries[:, -1], documents[:, -1]
    table = tables[-1]
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    plan = balanced_plan(jax.lax.stop_gradient(document @ table.T), iterations)
    chosen = plan.argmax(1)
    logits = scale * document @ table.T
    shares = jax.nn.softmax(logits)
    one = jax.nn.one_hot(chosen, len(table))
    # Straight-through: the chosen row forwards, the gradient of all of them backwards.
    row = (shares + jax.lax.stop_gradient(one - shares)) @ table
    fixed = jnp.float32(0)
    for place in range(before.shape[1]):
        for states in (queries, documents):
            earlier = scale * states[:, place] @ tables[place].T
            fixed += cross_entropy(earlier, before[:, place]).mean() / before.shape[1]
    return {
        "contrast": in_batch(scale * query @ document.T, items),
        "code": cross_entropy(logits, chosen).mean()
        + cross_entropy(scale * query @ table.T, chosen).mean(),
        "fixed": fixed,
        "reconstruction": in_batch(scale * row @ jax.lax.stop_gradient(document).T, items),
    }


def batches_of(groups: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Divides pairs into batches of pairs whose documents share a prefix, as far as there are any.

    Args:
      groups: int [P], which prefix the document of each pair has.
      batch_size: B, at most P.

    Returns:
      int [P // B, B], in random order; what fills no batch is left out.
    """
    shuffled = rng.permutation(len(groups))
    ranks = rng.permutation(groups.max() + 1)[groups[shuffled]]
    ordered = shuffled[np.argsort(ranks, kind="stable")]
    count = len(groups) // batch_size
    return rng.permutation(ordered[: count * batch_size].reshape(count, batch_size))


def first_table(vectors: np.ndarray, before: np.ndarray, codes: int, seed: int) -> np.ndarray:
    """Returns the cluster centres float32 [K, D] that E_t starts from.

    Clusters are of equal size, as far as Sinkhorn brings them.

    Args:
      vectors: float32 [V, D], h_t of the documents, from which the mean of those with the same
        codes before is taken first.
      before: int [V, t-1].
    """
    _, group = np.unique(before, axis=0, return_inverse=True)
    group = group.ravel()
    counts = np.bincount(group)[:, None]
    means = np.zeros((len(counts), vectors.shape[1]))
    np.add.at(means, group, vectors)
    centred = (vectors - (means / counts)[group]).astype(np.float32)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(centred), min(_FIT_ITEMS, len(centred)), replace=False)
    points = centred[np.sort(chosen)]
    centres = np.array(kmeans.kmeans(jax.random.key(seed), jnp.asarray(points), codes, _ROUNDS))
    for _ in range(_ROUNDS):
        distances = np.asarray(
            quantizer.squared_distances(jnp.asarray(points), jnp.asarray(centres)), np.float64
        )
        nearest = balanced_codes(distances, _EPSILON, 50)
        sizes = np.bincount(nearest, minlength=codes)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, points)
        centres[sizes > 0] = sums[sizes > 0] / sizes[sizes > 0, None]
    mean = vectors.mean(0)
    length = float(mean @ mean)
    # A product with what all documents have in common would prefer some codes for all of them.
    return centres - np.outer(centres @ mean, mean) / length if length else centres


def kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the agreement of two codings [n] beyond chance, at most 1; 0 where both are one code
    throughout (Cohen 1960).
    """
    codes = max(first.max(), second.max()) + 1
    shares = [
        np.bincount(codes_of, minlength=codes) / len(codes_of) for codes_of in (first, second)
    ]
    chance = float(shares[0] @ shares[1])
    return float(((first == second).mean() - chance) / (1.0 - chance)) if chance < 1 else 0.0


class LevelTask:
    """Learns one place of the identifiers, as a `core.task.Task`.

    Args:
      place: t, from 1.
      with_codes: False for the stage before E_t is there.
      network: a T5 whose head is its embedding.
      rows: of the embedding, int [L, K], each place's codes.
      before: int32 [V, t-1], the codes before this place.
      initial: the parameters to start from.
    """

    partition: Partition | None = None
    # Cohen's kappa: agreement by chance, as where all have one code, is worth nothing.
    selection = "kappa/catalogue"

    def __init__(
        self,
        place: int,
        with_codes: bool,
        network: Transformer,
        rows: np.ndarray,
        pairs: Pairs,
        before: np.ndarray,
        settings: LevelSettings,
        *,
        initial: Callable[[], Any],
        seed: int,
    ):
        self.name = f"place_{place}" if with_codes else f"place_{place}_without_codes"
        self.max_steps = settings.updates if with_codes else settings.first_updates
        self.batch_size = min(settings.batch_size, len(pairs.items))
        self.steps_per_epoch = len(pairs.items) // self.batch_size
        self._place, self._with_codes, self._network = place, with_codes, network
        self._rows, self._pairs, self._before = rows[:place], pairs, before
        self._settings, self._initial = settings, initial
        self._seed = seed
        self._optimizer = descent(settings.clip_norm, settings.weight_decay, settings.relative_rate)
        self._states = jax.jit(self._states_of)

    def init(self) -> Any:
        params = self._initial()
        return {
            "step": jnp.int32(0),
            "params": params,
            "optimizer": self._optimizer.init(params),
            "tables": {"before": jnp.asarray(self._before, jnp.int32)},
        }

    def batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields int32 `queries` and `documents` [B, T] and `items` [B]."""
        _, groups = np.unique(self._before[self._pairs.items], axis=0, return_inverse=True)
        epoch, first = divmod(start_step, self.steps_per_epoch)
        while True:
            rng = np.random.default_rng([self._seed, self._place, self._with_codes, epoch])
            for rows in batches_of(groups.ravel(), self.batch_size, rng)[first:]:
                items = self._pairs.items[rows]
                yield {
                    "queries": self._pairs.queries[rows],
                    "documents": self._pairs.documents[items],
                    "items": items,
                }
            epoch, first = epoch + 1, 0

    def _states_of(self, params: Any, inputs: jax.Array, before: jax.Array, key: Any = None) -> Any:
        """Returns h_1 to h_t [B, t, D] of prompts [B, T] after the codes [B, t-1]."""
        read = jnp.asarray(self._rows)[np.arange(self._place - 1), before]
        start = jnp.zeros((len(inputs), 1), jnp.int32)
        tokens = jnp.concatenate([start, read.astype(jnp.int32)], 1)
        rngs = {} if key is None else {"dropout": key}
        states: Any = self._network.apply(
            {"params": params},
            inputs,
            tokens,
            enable_dropout=key is not None,
            rngs=rngs,
            method="states",
        )
        return states.astype(jnp.float32)

    def losses(
        self, params: Any, batch: dict[str, Any], before: jax.Array, key: Any = None
    ) -> dict[str, jax.Array]:
        """Returns `level_losses` of a batch; rows of the places before this one are frozen."""
        embedding = params[_EMBEDDING[0]][_EMBEDDING[1]]
        frozen = jnp.zeros(len(embedding), bool).at[self._rows[:-1].ravel()].set(True)
        embedding = jnp.where(frozen[:, None], jax.lax.stop_gradient(embedding), embedding)
        params = {**params, _EMBEDDING[0]: {_EMBEDDING[1]: embedding}}
        keys = (None, None) if key is None else jax.random.split(key)
        queries = self._states_of(params, batch["queries"], before, keys[0])
        documents = self._states_of(params, batch["documents"], before, keys[1])
        return level_losses(
            queries,
            documents,
            embedding[self._rows],
            before,
            batch["items"],
            self._settings.sinkhorn_iterations,
        )

    def train_step(
        self, state: Any, batch: dict[str, Any], learning_rate: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Updates once by the weighted losses."""
        key = jax.random.fold_in(jax.random.key(self._seed), state["step"])
        before = state["tables"]["before"][batch["items"]]
        names = ["contrast", "fixed"]
        names += ["code", "reconstruction"] if self._with_codes else []

        def loss_of(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            losses = self.losses(params, batch, before, key)
            weighted = [getattr(self._settings, name) * losses[name] for name in names]
            return jnp.stack(weighted).sum(), losses

        params = state["params"]
        (loss, losses), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, optimizer = self._optimizer.update(gradient, state["optimizer"], params)
        rate = learning_rate * rate_at(state["step"], self.max_steps, self._settings.warmup)
        updates = optax.tree.scale(-rate, updates)
        # Their gradient is 0, but weights decay.
        table = updates[_EMBEDDING[0]][_EMBEDDING[1]]
        table = table.at[self._rows[:-1].ravel()].set(0.0)
        updates = {**updates, _EMBEDDING[0]: {_EMBEDDING[1]: table}}
        return {
            **state,
            "step": state["step"] + 1,
            "params": optax.apply_updates(params, updates),
            "optimizer": optimizer,
        }, {"loss": loss, **{name: losses[name] for name in names}}

    def vectors(self, params: Any, inputs: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Returns h_t float32 [n, D] of prompts [n, T] after the codes [n, t-1]."""
        parts = []
        size = min(_CHUNK, len(inputs))
        for start in range(0, len(inputs), size):
            rows = np.minimum(np.arange(start, start + size), len(inputs) - 1)
            states = self._states(params, inputs[rows], before[rows])
            parts.append(np.asarray(states[:, -1])[: len(inputs) - start])
        return np.concatenate(parts)

    def products(self, params: Any, vectors: np.ndarray) -> np.ndarray:
        """Returns the products [n, K] of vectors [n, D] with the codes' rows at this place."""
        table = np.asarray(params[_EMBEDDING[0]][_EMBEDDING[1]])[self._rows[-1]]
        return vectors @ table.T

    def codes_of(self, params: Any, vectors: np.ndarray) -> np.ndarray:
        """Returns the codes int32 [n] of vectors [n, D] at this place."""
        return self.products(params, vectors).argmax(1).astype(np.int32)

    def evaluate(self, state: Any) -> dict[str, float]:
        """Returns how the items use the codes of this place, and how far random training queries
        have their item's code, as a share and beyond chance.
        """
        params, before = state["params"], np.asarray(state["tables"]["before"])
        pairs = self._pairs
        own = self.codes_of(params, self.vectors(params, pairs.documents, before))
        rng = np.random.default_rng(self._seed)
        count = min(_LOOKED_AT, len(pairs.items))
        rows = rng.choice(len(pairs.items), count, replace=False)
        items = pairs.items[rows]
        asked = self.codes_of(params, self.vectors(params, pairs.queries[rows], before[items]))
        counts = jnp.asarray(np.bincount(own, minlength=self._settings.codes)[None])
        return {
            self.selection: kappa(asked, own[items]),
            "agreement/catalogue": float((asked == own[items]).mean()),
            "usage/catalogue": float(quantizer.usage(counts)[0]),
            "perplexity/catalogue": float(quantizer.perplexity(counts)[0]),
        }


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
        """Learns one place after another, or goes on, and writes the table once."""
        if workdir.read_results()["rows"]:
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
                with_codes=True, initial=self._going_on(_with_rows(params, rows[place - 1], table))
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
        identifier_network.save(workdir.path, params, vocabulary.digest)
        self.write(workdir, self._table(codes), metrics)

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


def _with_rows(params: Any, rows: np.ndarray, table: np.ndarray) -> Any:
    embedding = params[_EMBEDDING[0]][_EMBEDDING[1]].at[rows].set(table)
    return {**params, _EMBEDDING[0]: {_EMBEDDING[1]: embedding}}
