"""Learns one place of GenRet's identifiers: its batches, its four losses and its table of codes.

`genret` has the paper, what is settled here, and the axis letters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special

from core.partitioning import Partition
from core.schedules import rate_at
from core.settings import Count, Positive, Rate, Settings, Weight, at_least
from gensar_jax import kmeans, quantizer
from gensar_jax.identifiers import balanced_codes
from gensar_jax.joint_task import descent
from gensar_jax.t5.network import Transformer

EMBEDDING = ("token_embedder", "embedding")
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
      batch_size: documents an update, each with one query; at most all.
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


def one_each(items: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a random place int [n] of each of the n values in items int [P], in their order."""
    shuffled = rng.permutation(len(items))
    return shuffled[np.unique(items[shuffled], return_index=True)[1]]


def batches_of(groups: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Divides documents into batches that share a prefix, as far as there are any.

    Args:
      groups: int [n], which prefix each document has.
      batch_size: B, at most n.

    Returns:
      int [n // B, B], in random order; what fills no batch is left out.
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
        self._asked = np.unique(pairs.items)
        self.batch_size = min(settings.batch_size, len(self._asked))
        self.steps_per_epoch = len(self._asked) // self.batch_size
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
        """Yields int32 `queries` and `documents` [B, T] and `items` [B].

        An epoch has every document that is asked for once, with a random one of its queries: codes
        that are balanced over pairs are those of the few documents that most pairs are of.
        """
        _, groups = np.unique(self._before[self._asked], axis=0, return_inverse=True)
        epoch, first = divmod(start_step, self.steps_per_epoch)
        while True:
            rng = np.random.default_rng([self._seed, self._place, self._with_codes, epoch])
            pairs = one_each(self._pairs.items, rng)
            for places in batches_of(groups.ravel(), self.batch_size, rng)[first:]:
                items = self._asked[places]
                yield {
                    "queries": self._pairs.queries[pairs[places]],
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
        embedding = params[EMBEDDING[0]][EMBEDDING[1]]
        frozen = jnp.zeros(len(embedding), bool).at[self._rows[:-1].ravel()].set(True)
        embedding = jnp.where(frozen[:, None], jax.lax.stop_gradient(embedding), embedding)
        params = {**params, EMBEDDING[0]: {EMBEDDING[1]: embedding}}
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
        table = updates[EMBEDDING[0]][EMBEDDING[1]]
        table = table.at[self._rows[:-1].ravel()].set(0.0)
        updates = {**updates, EMBEDDING[0]: {EMBEDDING[1]: table}}
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
        table = np.asarray(params[EMBEDDING[0]][EMBEDDING[1]])[self._rows[-1]]
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
