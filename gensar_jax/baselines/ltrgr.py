"""Teaches a generator to rank what it generates, as LTRGR does, on GenSAR's T5.

Paper: Li et al., "Learning to Rank in Generative Retrieval" (AAAI 2024). Stage `joint` trains the
generator. Stage `rank` goes on from its best state: for every search

  L = r [1/2 max(0, s(n_top) - s(p) + m) + 1/2 max(0, s(n_random) - s(p) + m + m')] + w CE(p)

where r is 1, s(i) = log p(identifier of i | query) in nats, p is the clicked item, and n_top and
n_random are the first and a random one of the other items in the generator's own beam.

Settled here: the paper adds up FM-index scores of n-grams, for which its margins of 300 and 400 and
its weight of 1,000 are made; identifiers need neither, so that the margins are of log-likelihoods,
m' being a third of m as there. With r of 0 the stage trains as long on the same batches without the
ranking loss: the control that tells what further training alone is worth. Where a hinge is 0 the
cross-entropy stays (the released code drops such queries). There is one identifier an item, thus
one cross-entropy. An item that another training search of the same query led to is no negative.

Axis letters: Q searches, N negatives, B batch, T prompt, P forced tokens, S identifier tokens.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import config_dict

from core.errors import UserError
from core.loop import LoopConfig
from core.partitioning import Partition, own_copy
from core.prefetch import ahead
from core.schedules import rate_at
from core.settings import Count, Positive, Section, Settings, Weight, build
from core.workdir import Workdir
from gensar_jax.experiment import GenSARExperiment
from gensar_jax.generation import generate
from gensar_jax.joint_task import JointTask, State, token_losses
from gensar_jax.t5.network import Transformer
from input_pipelines import histories

_LOG = logging.getLogger(__name__)
_STAGE = "rank"
# Of a batch, beside its prompts.
_ITEMS = ("positive", "top", "random")
_generate = jax.jit(generate, static_argnames=("network", "width", "length_penalty"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankSettings(Settings):
    """Says how the second stage trains.

    Attributes:
      searches: training searches at most whose beams are made; a random choice of all.
      candidates: width of these beams.
      batch_size: searches an update.
      updates: of the stage; the learning rate rises over their first tenth, then falls as a cosine.
      evals: over the stage.
      margin: m, in nats.
      random_margin: m', added to it for random negatives.
      cross_entropy: w.
      ranking: r, of both hinges; 0 is the control.
    """

    searches: Count
    candidates: Count
    batch_size: Count
    updates: Count
    evals: Count
    learning_rate: Weight
    margin: Positive
    random_margin: Weight
    cross_entropy: Weight
    ranking: Weight

    def check(self) -> None:
        if not self.ranking and not self.cross_entropy:
            raise ValueError(
                "expected config.rank.ranking or cross_entropy above 0, found 0 for both"
            )


class RankedSearches(NamedTuple):
    """Holds searches and what the generator's beam found for them.

    Attributes:
      inputs: int32 [Q, T], prompts.
      positive: int32 [Q], items clicked.
      negatives: int32 [Q, N], other items, best first; 0 is padding.
    """

    inputs: np.ndarray
    positive: np.ndarray
    negatives: np.ndarray


def hinge(positive: jax.Array, negative: jax.Array, margin: float) -> jax.Array:
    """Returns max(0, negative - positive + margin), averaged over scores [B] in nats."""
    return jnp.maximum(0.0, negative - positive + margin).mean()


def scores_of(
    network: Transformer,
    params: Any,
    inputs: jax.Array,
    forced: jax.Array,
    identifiers: jax.Array,
    key: jax.Array | None = None,
) -> jax.Array:
    """Returns log p float32 [B, S] of each token of an identifier; 0 at padding.

    Args:
      inputs: int32 [B, T], prompts.
      forced: int32 [P], decoder tokens before an identifier, unscored.
      identifiers: int32 [B, S]; 0 is padding.
      key: of dropout; None drops nothing.
    """
    prefix = jnp.broadcast_to(forced, (len(identifiers), len(forced)))
    targets = jnp.concatenate([prefix, identifiers], 1)
    shifted = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
    rngs = {} if key is None else {"dropout": key}
    logits: Any = network.apply(
        {"params": params}, inputs, shifted, targets, enable_dropout=key is not None, rngs=rngs
    )
    return -token_losses(logits, targets)[:, len(forced) :]


def rank_loss(
    positive: jax.Array, top: jax.Array, random: jax.Array, settings: RankSettings
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns L averaged over a batch, and its parts.

    Args:
      positive, top, random: log p float32 [B, S] of the tokens of three items; 0 at padding.
    """
    own = positive.sum(1)
    first = hinge(own, top.sum(1), settings.margin)
    other = hinge(own, random.sum(1), settings.margin + settings.random_margin)
    cross_entropy = -positive.sum() / jnp.maximum((positive != 0).sum(), 1)
    hinges = 0.5 * (first + other)
    loss = settings.ranking * hinges + settings.cross_entropy * cross_entropy
    ahead_of_top = (own > top.sum(1)).mean()
    return loss, {"hinge": hinges, "ahead_of_top": ahead_of_top}


class RankTask(JointTask):
    """Trains a generator on the order of what it generates, as a `core.task.Task`.

    Args:
      joint: the task of the first stage, whose network, optimizer and evaluation it takes.
      initial: the parameters to start from.
      searches: makes them; called before the first update alone.
      identifiers: int32 [V+1, S], tokens of the items.
      forced: decoder tokens before an identifier.
      seed: of what a batch holds, and of dropout.
      partition: the mesh to train on; None means one device.
    """

    def __init__(
        self,
        joint: JointTask,
        settings: RankSettings,
        *,
        initial: Callable[[], Any],
        searches: Callable[[], RankedSearches],
        identifiers: np.ndarray,
        forced: list[int],
        evaluate: Callable[[Any, Any], dict[str, float]],
        tables: dict[str, np.ndarray],
        seed: int,
        partition: Partition | None = None,
    ):
        super().__init__(
            joint.network,
            dataclasses.replace(joint.config, batch_size=settings.batch_size, warmup=0.1),
            stream=lambda start, stop: (),
            examples_per_epoch=settings.searches,
            evaluate=evaluate,
            selection=joint.selection,
            tables=tables,
            seed=seed,
            initial=initial,
            partition=partition,
            name=_STAGE,
        )
        self.max_steps = settings.updates
        self._rank, self._searches = settings, searches
        self._identifiers, self._forced = identifiers, np.array(forced, np.int32)

    def batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields int32 `inputs` [B, T] and the tokens [B, S] of `positive`, `top` and `random`."""
        make = functools.partial(self._batch, self._searches())
        yield from ahead(make, start_step, count=2, threads=1)

    def _batch(self, searches: RankedSearches, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self._seed, step])
        rows = rng.integers(0, len(searches.positive), self.batch_size)
        negatives = searches.negatives[rows]
        drawn = rng.integers(0, (negatives > 0).sum(1))
        return {
            "inputs": searches.inputs[rows],
            "positive": self._identifiers[searches.positive[rows]],
            "top": self._identifiers[negatives[:, 0]],
            "random": self._identifiers[negatives[np.arange(len(rows)), drawn]],
        }

    def train_step(
        self, state: State, batch: dict[str, Any], learning_rate: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        """Updates once by L."""
        key = jax.random.fold_in(jax.random.key(self._seed), state["step"])

        def loss_of(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            inputs = jnp.tile(batch["inputs"], (len(_ITEMS), 1))
            tokens = jnp.concatenate([batch[name] for name in _ITEMS])
            scores = scores_of(self.network, params, inputs, jnp.asarray(self._forced), tokens, key)
            positive, top, random = jnp.split(scores, len(_ITEMS))
            return rank_loss(positive, top, random, self._rank)

        params = state["params"]
        (loss, stats), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, optimizer = self._optimizer.update(gradient, state["optimizer"], params)
        rate = learning_rate * rate_at(state["step"], self.max_steps, self.config.warmup)
        return {
            **state,
            "step": state["step"] + 1,
            "params": optax.apply_updates(params, optax.tree.scale(-rate, updates)),
            "optimizer": optimizer,
        }, {"loss": loss, **stats}


class LTRGRExperiment(GenSARExperiment):
    """Trains a generator of search answers, then the order of its beams.

    Raises:
      UserError: as `GenSARExperiment`, or a mixture without searches.
    """

    stages = (_STAGE, JointTask.name)

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        return {**super().sections(config), _STAGE: Section((RankSettings,))}

    @classmethod
    def check_settings(cls, config: config_dict.ConfigDict) -> None:
        super().check_settings(config)
        if not config.mixture.nsip or not config.eval.search_protocols:
            raise UserError(
                "expected searches to learn the order of, found a rate of 0 for "
                "config.mixture.nsip or no config.eval.search_protocols; set both"
            )
        if config.rank.candidates < 2:
            raise UserError(
                f"expected config.rank.candidates of 2 or more, found {config.rank.candidates}; a "
                "beam of 1 holds no item to tell the clicked one from"
            )

    def run(self, workdir: Workdir) -> None:
        """Trains both stages, or continues, and reads the test split once for each."""
        self.begin(workdir)
        generator = self.train_and_test(workdir, self.task, self.joint_loop())["params"]
        generator = own_copy(self._ranker.place_params(generator))
        settings = build(RankSettings, self.config.rank.to_dict(), section=_STAGE)
        loop = LoopConfig.fixed_length(
            settings.updates,
            evals=settings.evals,
            checkpoint_every=self.config.loop.checkpoint_every,
            log_every=self.config.loop.log_every,
            learning_rate=settings.learning_rate,
        )
        task = RankTask(
            self.task,
            settings,
            initial=lambda: generator,
            searches=lambda: self.ranked_searches(generator, settings),
            identifiers=self.examples.tokens_of("search"),
            forced=self.examples.forced("search"),
            evaluate=self.validate,
            tables=self.constant_tables(),
            seed=self.config.seed,
            partition=self._whole_batches(),
        )
        self.train_and_test(workdir, task, loop)

    def _whole_batches(self) -> Partition | None:
        """Returns the mesh, every device of which computes the same: a batch has few searches."""
        whole = frozenset(("inputs", *_ITEMS))
        return self.partition and Partition(self._mesh, (), whole=whole)

    def ranked_searches(self, params: Any, settings: RankSettings) -> RankedSearches:
        """Returns training searches with what a generator's beam finds beside the clicked item.

        Raises:
          UserError: a beam holds nothing but clicked items for every search.
        """
        log, examples = self.data.log, self.examples
        every = examples.searches
        rng = np.random.default_rng(self.config.seed)
        count = min(settings.searches, len(every))
        searches = every.take(np.sort(rng.choice(len(every), count, replace=False)))
        _LOG.info("beams of %d of %d training searches", count, len(every))
        clicked: dict[str, set[int]] = collections.defaultdict(set)
        for row, item in zip(every.target_row.tolist(), every.item.tolist(), strict=True):
            clicked[histories.query_text(log, row)].add(item)
        inputs = examples.evaluation_inputs(searches)
        found = self._found(params, inputs, settings.candidates)
        negatives = np.zeros_like(found)
        for place, row in enumerate(searches.target_row.tolist()):
            own = clicked[histories.query_text(log, row)]
            others = [item for item in found[place].tolist() if item > 0 and item not in own]
            negatives[place, : len(others)] = others
        some = negatives[:, 0] > 0
        if not some.any():
            raise UserError(
                f"expected items that no search led to in the beams of {count} training searches, "
                "found none; raise config.rank.candidates"
            )
        return RankedSearches(inputs[some], np.asarray(searches.item)[some], negatives[some])

    def _found(self, params: Any, inputs: np.ndarray, width: int) -> np.ndarray:
        """Returns the items int32 [Q, N] of a beam for each prompt, best first; -1 is none."""
        forced = np.array(self.examples.forced("search"), np.int32)
        size = min(self.config.eval.full_batch_size, len(inputs))
        parts = []
        for start in range(0, len(inputs), size):
            rows = np.minimum(np.arange(start, start + size), len(inputs) - 1)
            prefix = np.broadcast_to(forced, (size, len(forced)))
            trie = self.trie("search")
            beams = _generate(self.network, params, inputs[rows], prefix, trie, width=width)
            parts.append(np.asarray(beams.items)[: len(inputs) - start])
        return np.concatenate(parts)
