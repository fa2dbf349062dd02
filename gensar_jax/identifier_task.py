"""Trains the joint RQ-VAE as a `core.task.Task`, and assigns codes to a whole catalogue."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from core.partitioning import Partition
from core.settings import Count, CountOrNone, Positive, Settings, Weight
from gensar_jax import identifiers, kmeans, quantizer
from gensar_jax.quantizer import SHARED
from gensar_jax.rqvae import RQVAE, Params

State = dict[str, Any]
# Items that k-means starts from, and items a forward pass takes at once.
_START_ITEMS = 65_536
_CHUNK = 4_096


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig(Settings):
    """Says how the RQ-VAE is trained.

    Attributes:
      batch_size: items a step; at most the catalogue.
      epochs: the learning rate falls linearly to 0 at their end.
      weight_decay: of AdamW.
      clip_norm: of the whole gradient.
      kmeans_iterations: of the codebooks' start.
      revive_after: epochs without an item after which a code is moved.
    """

    batch_size: Count
    epochs: Count
    weight_decay: Weight
    clip_norm: Positive
    kmeans_iterations: CountOrNone
    revive_after: Positive


class Assignment(NamedTuple):
    """Holds the nearest codes of a catalogue, by source.

    Attributes:
      codes: int32 [V, L_m + L_n].
      residuals: float32 [V, D], what the last level was given.
      errors: float32 [V], mean squared error of the decoded vector.
    """

    codes: dict[str, np.ndarray]
    residuals: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]


def scaled(vectors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Vectors with mean square 1 a dimension, so that no source outweighs the other in Eq. 8."""
    return {
        source: (rows / np.sqrt(np.square(rows).mean())).astype(np.float32)
        for source, rows in vectors.items()
    }


def explained(vectors: np.ndarray, errors: np.ndarray) -> float:
    """Returns the share of the vectors' variance that their codes explain.

    Variance is about the mean of the vectors: a decoder that knows their mean alone explains 0.

    Args:
      vectors: float [V, D].
      errors: float [V], mean squared error of each decoded vector.

    Returns:
      At most 1; 0 where all vectors are equal and nothing is to be explained.
    """
    variance = float(vectors.astype(np.float64).var(0).mean())
    return 1.0 - float(errors.mean(dtype=np.float64)) / variance if variance > 0 else 0.0


class IdentifierTask:
    """Trains the RQ-VAE of the identifiers, as a `core.task.Task`.

    Args:
      vectors: by source, float32 [V, D], scaled.
      seed: of parameters, k-means, the order of items and revivals.
    """

    name = "identifiers"
    # Variance of the vectors explained by what their codes decode to, mean over the sources.
    selection = "explained/catalogue"
    partition: Partition | None = None  # a catalogue's vectors fit one device

    def __init__(
        self, model: RQVAE, config: TrainingConfig, vectors: dict[str, np.ndarray], seed: int
    ):
        self.model = model
        self._config, self._vectors, self._seed = config, vectors, seed
        self.num_items = len(next(iter(vectors.values())))
        self.batch_size = min(config.batch_size, self.num_items)
        # The rest of an epoch is left to the next, which draws another order.
        self.steps_per_epoch = self.num_items // self.batch_size
        self.max_steps = config.epochs * self.steps_per_epoch
        self._revive_after = max(1, round(config.revive_after * self.steps_per_epoch))
        self._optimizer = optax.chain(
            optax.clip_by_global_norm(config.clip_norm),
            optax.scale_by_adam(),
            optax.add_decayed_weights(config.weight_decay),
        )
        self._forward = jax.jit(self._assign_chunk)

    def init(self) -> State:
        network_key, codes_key, items_key = jax.random.split(jax.random.key(self._seed), 3)
        network = self.model.init_network(network_key)
        chosen = np.arange(self.num_items)
        if self.num_items > _START_ITEMS:
            chosen = np.asarray(jax.random.permutation(items_key, self.num_items)[:_START_ITEMS])
        config = self.model.config
        codebooks = kmeans.start_codebooks(
            codes_key,
            jax.jit(self.model.encode)(network, {s: v[chosen] for s, v in self._vectors.items()}),
            config.sources,
            shared_levels=config.shared_levels,
            specific_levels=config.specific_levels,
            num_codes=config.codes,
            iterations=self._config.kmeans_iterations,
        )
        params = {"network": network, "codebooks": dict(codebooks)}
        return {
            "step": jnp.int32(0),
            "params": params,
            "optimizer": self._optimizer.init(params),
            "idle": {n: jnp.zeros(book.shape[:2], jnp.int32) for n, book in codebooks.items()},
        }

    def batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """Vectors [B, D] by source, in an order that each epoch draws anew."""
        epoch, position = divmod(start_step, self.steps_per_epoch)
        while True:
            order = np.random.default_rng([self._seed, epoch]).permutation(self.num_items)
            for number in range(position, self.steps_per_epoch):
                rows = order[number * self.batch_size : (number + 1) * self.batch_size]
                yield {source: vectors[rows] for source, vectors in self._vectors.items()}
            epoch, position = epoch + 1, 0

    def train_step(
        self, state: State, batch: dict[str, Any], learning_rate: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        def loss_of(params):
            output = self.model.loss(params, batch, balanced=True)
            return output.loss, output

        gradient, output = jax.grad(loss_of, has_aux=True)(state["params"])
        updates, optimizer = self._optimizer.update(gradient, state["optimizer"], state["params"])
        rate = learning_rate * optax.linear_schedule(1.0, 0.0, self.max_steps)(state["step"])
        params = optax.apply_updates(state["params"], optax.tree.scale(-rate, updates))
        codebooks, idle, revived = {}, {}, jnp.int32(0)
        key = jax.random.fold_in(jax.random.key(self._seed), state["step"])
        for number, (name, book) in enumerate(sorted(params["codebooks"].items())):
            codebooks[name], idle[name] = quantizer.revive(
                jax.random.fold_in(key, number),
                book,
                output.levels[name],
                state["idle"][name],
                after=self._revive_after,
            )
            revived += (codebooks[name] != book).any(-1).sum()
        stats = {
            "loss": output.loss,
            "reconstruction": output.reconstruction,
            "rq": output.rq,
            "revived": revived,
        }
        return {
            "step": state["step"] + 1,
            "params": params | {"codebooks": codebooks},
            "optimizer": optimizer,
            "idle": idle,
        }, stats

    def _assign_chunk(self, params: Params, vectors: dict[str, jax.Array]) -> Any:
        config = self.model.config
        latents = self.model.encode(params["network"], vectors)
        levels = quantizer.quantize(latents, params["codebooks"], config.sources)
        quantized = quantizer.quantized_latents(levels, config.sources)
        decoded: Any = self.model.network.apply(params["network"], quantized, method="decode")
        errors = {s: jnp.square(vectors[s] - decoded[s]).mean(-1) for s in config.sources}
        last = {
            s: levels[s if config.specific_levels else SHARED].inputs[-1] for s in config.sources
        }
        return quantizer.identifiers(levels, config.sources), last, errors

    def abstract_state(self) -> State:
        """Returns shapes and dtypes of a state, to restore a checkpoint into."""
        config = self.model.config
        network = jax.eval_shape(self.model.init_network, jax.random.key(0))

        def books(levels: int, width: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((levels, config.codes, width), jnp.float32)

        width = config.latent_width
        codebooks = {s: books(config.specific_levels, width) for s in config.sources}
        codebooks[SHARED] = books(config.shared_levels, len(config.sources) * width)
        params = {"network": network, "codebooks": codebooks}
        return {
            "step": jax.ShapeDtypeStruct((), jnp.int32),
            "params": params,
            "optimizer": jax.eval_shape(self._optimizer.init, params),
            "idle": {
                name: jax.ShapeDtypeStruct(book.shape[:2], jnp.int32)
                for name, book in codebooks.items()
            },
        }

    def assign(self, params: Params, vectors: Mapping[str, np.ndarray] | None = None) -> Assignment:
        """Returns the nearest codes of every item; no Sinkhorn.

        Args:
          vectors: of other items, `scaled` as those of the catalogue, which None stands for.
        """
        vectors = self._vectors if vectors is None else vectors
        parts = []
        for start in range(0, len(next(iter(vectors.values()))), _CHUNK):
            rows = {s: v[start : start + _CHUNK] for s, v in vectors.items()}
            parts.append(jax.device_get(self._forward(params, rows)))
        joined: Any = jax.tree.map(lambda *chunks: np.concatenate(chunks), *parts)
        return Assignment(*joined)

    def evaluate(self, state: State) -> dict[str, float]:
        """Returns usage and perplexity of every level, collisions and explained variance."""
        return self.describe(self.assign(state["params"]))

    def describe(self, assignment: Assignment) -> dict[str, float]:
        config = self.model.config
        values: dict[str, float] = {}
        for source in config.sources:
            counts = quantizer.use_counts(jnp.asarray(assignment.codes[source]), config.codes)
            usage, perplexity = quantizer.usage(counts), quantizer.perplexity(counts)
            for level in range(config.levels):
                part = SHARED if level < config.shared_levels else source
                number = level + 1 if part == SHARED else level + 1 - config.shared_levels
                values[f"usage_{number}/{part}"] = float(usage[level])
                values[f"perplexity_{number}/{part}"] = float(perplexity[level])
            codes = assignment.codes[source]
            values[f"collision_rate/{source}"] = identifiers.collision_rate(codes)
            values[f"colliding_items/{source}"] = identifiers.colliding_items(codes)
            values[f"explained/{source}"] = explained(
                self._vectors[source], assignment.errors[source]
            )
        each = [values[f"explained/{source}"] for source in config.sources]
        return values | {self.selection: float(np.mean(each))}
