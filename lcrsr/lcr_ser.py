"""Wraps LCR-SER as a `Ranker`: its pre-training loss (Eq. 9, 11), and scores with K active
steps.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from core.errors import UserError
from core.settings import CountOrNone, Settings, Weight, one_of
from lcrsr import losses, query
from lcrsr.latent_reasoning import States
from lcrsr.model import LCRSER, Histories
from lcrsr.ranker import Batch, Params, Rows, drawn_parameters

# In a batch: the logits float32 [B, N] of a teacher for its candidates.
TEACHER = "teacher"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(Settings):
    """Holds the settings of Eq. 9 and 11.

    Attributes:
      recommendation: of `losses.LOSSES`, 'bce' as in Eq. 11; those over all items where items are
        scored by a dot product.
      lambda_tcl: weight of the contrastive loss.
      margin: m of Eq. 9, in the unit of `distance`.
      distance: 'cosine' or 'euclidean'.
      stop_gradient: which side of the hinge's distances gets no gradient: 'none' (as printed),
        'h_plain' or 'both'.
      active_steps: K in use, in training and scoring.
      lambda_distil: weight of the divergence from a teacher, where batches bring its logits.
    """

    recommendation: losses.OfVectors
    lambda_tcl: Weight
    margin: Weight
    distance: Annotated[str, one_of(*losses.DISTANCES)]
    stop_gradient: Annotated[str, one_of(*losses.STOP_GRADIENTS)]
    active_steps: CountOrNone
    lambda_distil: Weight = 0.0


class Reasoned(NamedTuple):
    """Users ready to be scored."""

    histories: Histories
    states: States


class LCRSERRanker:
    """Ranks with LCR-SER's network: a `Ranker`.

    Attributes:
      numbers: what of the loss's settings is arithmetic alone, `active_steps`, `lambda_tcl` and
        `margin`; where keywords give them, traced or not, these count instead.
    """

    tasks: tuple[str, ...] = ("recommendation",)
    trains_on_windows = True

    def __init__(self, model: LCRSER, config: LossConfig):
        of_pairs = config.recommendation in losses.RECOMMENDATION
        if not of_pairs and model.config.scorer != "dot_product":
            raise UserError(
                f"expected config.model.scorer='dot_product' with config.train.recommendation="
                f"{config.recommendation!r}, found {model.config.scorer!r}; set one of them"
            )
        self.model, self.config = model, config
        self.shares_negatives = config.recommendation == losses.SAMPLED
        self.needs_whole_tables = config.recommendation == losses.FULL
        self.tables: tuple[str, ...] = ("user", "item", "word")
        self.dot_product = model.config.scorer == "dot_product"
        if self.dot_product:
            self.tables = ("item", "word")
            self.popularity_weight = query.POPULARITY_WEIGHT
        else:
            # A CPU scores users one by one: .5 MB of logits and 1.6 MB of hidden units.
            self.catalogue_chunk = 2048
        self.width, self.init_scale = model.config.width, model.config.init_scale
        self.numbers: dict[str, Any] = {
            "active_steps": config.active_steps,
            "lambda_tcl": config.lambda_tcl,
            "margin": config.margin,
        }

    @property
    def max_steps(self) -> int:
        """Returns the K that it can reason at most."""
        return self.model.config.max_steps

    @property
    def gives_probabilities(self) -> bool:
        """Tells whether the sigmoid of a score is the probability of a click, as Eq. 11 trains it.

        It is one among the target and the negatives of training, not among all items.
        """
        return self.config.recommendation == "bce"

    def score_every_k(
        self, params: Params, users: Reasoned, rows: Rows, items: jax.Array
    ) -> jax.Array:
        """Scores float32 [K+1, B, V] of items [V, D] with 0..K active steps, from one pass."""
        scores: Any = self.model.apply(
            {"params": params}, *users, rows.get("user"), items, method=LCRSER.score_every_k
        )
        return scores

    def init(self, key: jax.Array, batch: Batch, rows: Rows) -> Params:
        return drawn_parameters(self.model, key, batch, rows, jnp.int32(0))

    def loss(
        self,
        params: Params,
        batch: Batch,
        rows: Rows,
        tables: dict[str, jax.Array],
        key: jax.Array,
        **numbers: Any,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        config, numbers = self.config, self.numbers | numbers
        active_steps = jnp.int32(numbers["active_steps"])
        outputs: Any = self.model.apply(
            {"params": params},
            batch,
            rows,
            active_steps,
            deterministic=False,
            rngs={"dropout": key},
        )
        if config.recommendation in losses.RECOMMENDATION:
            recommend = losses.RECOMMENDATION[config.recommendation]
            recommendation = recommend(outputs.logits, batch["labels"], batch["mask"])
        else:
            queries = outputs.query.astype(jnp.float32)
            recommendation = losses.of_vectors(
                config.recommendation, queries, batch, rows, tables["item"]
            )
        contrastive, distances = losses.contrastive_from_outputs(
            outputs,
            rows["candidates"][:, 0],
            active_steps,
            batch["mask"],
            margin=numbers["margin"],
            distance=config.distance,
            stop_gradient=config.stop_gradient,
        )
        total = recommendation + numbers["lambda_tcl"] * contrastive
        stats = {
            config.recommendation: recommendation,
            "contrastive": contrastive,
            **distances,
        }
        if TEACHER in batch:
            stats["distillation"] = losses.distillation(
                outputs.logits, batch[TEACHER], batch["mask"]
            )
            total += config.lambda_distil * stats["distillation"]
        return total, stats

    def represent(self, params: Params, batch: Batch, rows: Rows) -> Reasoned:
        histories: Any = self.model.apply(
            {"params": params}, batch, rows, deterministic=True, method=LCRSER.encode
        )
        states: Any = self.model.apply(
            {"params": params},
            histories,
            histories.rec.start,
            histories.search.start,
            cross=True,
            deterministic=True,
            method=LCRSER.reason,
        )
        return Reasoned(histories, states)

    def score(self, params: Params, users: Reasoned, rows: Rows, **numbers: Any) -> jax.Array:
        return self._score(params, users, rows, rows["candidates"], numbers)

    def score_catalogue(
        self, params: Params, users: Reasoned, rows: Rows, items: jax.Array, **numbers: Any
    ) -> jax.Array:
        return self._score(params, users, rows, items, numbers)

    def user_vectors(
        self, params: Params, users: Reasoned, rows: Rows, **numbers: Any
    ) -> jax.Array:
        """Returns the vectors float32 [B, D] of which a score is the product with an item's row."""
        del rows
        active_steps = jnp.int32((self.numbers | numbers)["active_steps"])
        vectors: Any = self.model.apply(
            {"params": params}, *users, active_steps, method=LCRSER.user_vectors
        )
        return vectors

    def _score(self, params, users, rows, items, numbers):
        active_steps = jnp.int32((self.numbers | numbers)["active_steps"])
        return self.model.apply(
            {"params": params}, *users, active_steps, rows.get("user"), items, method=LCRSER.score
        )
