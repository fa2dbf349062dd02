"""Fine-tunes the decoder as a `core.task.Task`: alignment, distillation, Eq. 2."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from core import seeds
from core.loop import steps_for
from core.packing import first_fit
from core.partitioning import Partition, own_rows
from core.schedules import rate_at
from core.settings import Count, Positive, Rate, Settings, Weight, at_least
from crs_jax import lora, packing
from crs_jax.decoder import Decoder
from crs_jax.generation import token_log_probs
from crs_jax.packing import Example

State = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTConfig(Settings):
    """Says how a stage of fine-tuning trains.

    Attributes:
      batch_size: examples an update.
      row_length: T, tokens of a packed row.
      warmup: share of the updates in which the rate rises linearly; then it falls as a cosine.
      weight_decay: of AdamW.
      clip_norm: of the whole gradient.
    """

    batch_size: Count
    row_length: Annotated[int, at_least(2)]
    warmup: Rate
    weight_decay: Weight
    clip_norm: Positive


def optimizer_of(config: Any) -> optax.GradientTransformation:
    """Makes AdamW without a rate, which the step multiplies."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(),
        optax.add_decayed_weights(config.weight_decay),
    )


def first_state(
    params: Any, config: Any, tables: dict[str, np.ndarray], partition: Partition | None
) -> State:
    """Makes the state before the first update; all but `params` where the partition has it.

    Args:
      params: as `lora.split` gives them.
      config: with the optimizer's settings.
    """

    def start(trained):
        return {
            "step": jnp.int32(0),
            "optimizer": optimizer_of(config).init(trained),
            "tables": {name: jnp.asarray(table) for name, table in tables.items()},
        }

    trained = params["trained"]
    places = None if partition is None else partition.shardings(jax.eval_shape(start, trained))
    return {"params": params, **jax.jit(start, out_shardings=places)(trained)}


def answer_loss(network: Decoder, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Returns -log p of the answers' tokens, their mean in nats; rows as `packing.packed` makes.

    A row's N is 1: [R, 1, T].
    """
    tokens, segments = batch["tokens"][:, None], batch["segments"][:, None]
    output: Any = network.apply({"params": params}, tokens, batch["positions"][:, None], segments)
    log_probs = token_log_probs(network, params, output[0][:, :, :-1], tokens[:, :, 1:])
    answers = batch["answers"][:, None, 1:]
    return -(log_probs * answers).sum() / jnp.maximum(answers.sum(), 1)


@functools.lru_cache
def sft_step(network: Decoder, config: SFTConfig) -> Any:
    """Makes (state, batch, rate) -> (state, statistics); one function, and so one compilation,
    serves all stages of the same shapes.
    """
    optimizer = optimizer_of(config)

    def step(state: State, batch: dict[str, Any], learning_rate: jax.Array) -> Any:
        params = state["params"]

        def loss_of(trained):
            return answer_loss(network, lora.whole(params, trained), batch)

        loss, gradient = jax.value_and_grad(loss_of)(params["trained"])
        updates, moments = optimizer.update(gradient, state["optimizer"], params["trained"])
        rate = learning_rate * batch["rate"]
        trained = optax.apply_updates(params["trained"], optax.tree.scale(-rate, updates))
        return {
            **state,
            "step": state["step"] + 1,
            "params": {**params, "trained": trained},
            "optimizer": moments,
        }, {"loss": loss}

    return step


class SFTTask:
    """Fine-tunes on examples in memory, as a `core.task.Task`.

    Args:
      name: of the stage; each stage draws its own order.
      network, config: see there.
      examples: all of them; each epoch has its own order.
      epochs: the rate falls to 0 at their end.
      initial: makes the parameters before the first update, as `lora.split` gives them.
      evaluate: validation metrics of (params, tables).
      selection: the metric among them that decides.
      tables: constant arrays kept with the parameters in every checkpoint.
      seed: of the order.
      partition: the mesh to train on; None means one device.

    Raises:
      ValueError: no example, or one longer than a row.
    """

    def __init__(
        self,
        name: str,
        network: Decoder,
        config: SFTConfig,
        *,
        examples: Sequence[Example],
        epochs: float,
        initial: Callable[[], Any],
        evaluate: Callable[[Any, Any], dict[str, float]],
        selection: str,
        tables: dict[str, np.ndarray],
        seed: int,
        partition: Partition | None = None,
    ):
        if not examples or epochs <= 0:
            raise ValueError(
                f"expected examples and epochs above 0, found {len(examples)} and {epochs}"
            )
        self.name, self.selection, self.batch_size = name, selection, config.batch_size
        self.config, self._examples, self._initial = config, examples, initial
        self.partition = partition
        devices = 1 if partition is None else partition.size
        self._row_multiple = math.lcm(packing.ROW_MULTIPLE, devices)
        self._evaluate, self._tables, self._seed = evaluate, tables, seed
        self.steps_per_epoch = steps_for(len(examples), config.batch_size)
        self.max_steps = max(1, round(epochs * self.steps_per_epoch))
        self.train_step = sft_step(network, config)
        lengths = [[example.length] for example in examples]
        # Every batch has the rows that the largest of the first epoch needs, so that nearly all
        # have one shape.
        self._rows = max(
            len(first_fit([lengths[i] for i in self._chosen(step)], [config.row_length]))
            for step in range(min(self.steps_per_epoch, self.max_steps))
        )

    def init(self) -> State:
        return first_state(self._initial(), self.config, self._tables, self.partition)

    def _chosen(self, step: int) -> np.ndarray:
        """Examples of an update: each epoch is a random order, the last batch of it filled up."""
        count, size = len(self._examples), self.batch_size
        epoch, place = divmod(step, self.steps_per_epoch)
        stream = seeds.stream(self._seed, self.name, "order", epoch)
        order = np.random.default_rng(stream).permutation(count)
        return np.resize(order, self.steps_per_epoch * size)[place * size : (place + 1) * size]

    def batches(self, start_step: int) -> Iterator[dict[str, Any]]:
        """Yields packed batches from a step on.

        Each of several processes packs them all and yields its part of the rows.
        """
        step = start_step
        while True:
            chosen = [self._examples[i] for i in self._chosen(step)]
            batch = packing.packed(chosen, self.config.row_length, self._rows, self._row_multiple)
            own = own_rows(len(batch["tokens"]))
            factor = rate_at(jnp.int32(step), self.max_steps, self.config.warmup)
            yield {name: array[own] for name, array in batch.items()} | {"rate": np.float32(factor)}
            step += 1

    def evaluate(self, state: State) -> dict[str, float]:
        return self._evaluate(state["params"], state["tables"])
