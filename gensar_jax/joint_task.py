"""Trains GenSAR jointly (paper, 3.3 and Eq. 12) as a `core.task.Task`."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from core.partitioning import BATCH_AXES, Partition, own_rows, placed, random_bits_impl
from core.prefetch import ahead
from core.schedules import rate_at
from core.settings import Count, CountOrNone, Positive, Rate, Settings, Weight
from gensar_jax import packing
from gensar_jax.prompts import Example
from gensar_jax.t5.network import Transformer

State = dict[str, Any]
# (example numbers from, to) of the endless stream -> examples.
Stream = Callable[[int, int], Sequence[Example]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointConfig(Settings):
    """Says how the network is trained.

    Attributes:
      batch_size: examples an update.
      row_inputs, row_targets: T and S, tokens of a packed row.
      accumulate: parts of a batch whose gradients are added before an update.
      epochs: of the mixture; the learning rate falls as a cosine to 0 at their end.
      warmup: share of the updates in which the learning rate rises linearly from 0.
      weight_decay: of AdamW.
      clip_norm: of the whole gradient.
      relative_rate: whether an array's update is multiplied by the root mean square of the array,
        as in T5's own training (Adafactor): its embeddings start at a deviation of 1, its kernels
        at a tenth of that or less, and one absolute rate cannot suit both.
      label_smoothing: share of a target's probability that goes to all other tokens alike.
      updates: of the whole training in place of `epochs`, so that methods whose mixtures differ in
        size are trained alike; 0 leaves it to these.
    """

    batch_size: Count
    row_inputs: Count
    row_targets: Count
    accumulate: Count
    epochs: Positive
    warmup: Rate
    weight_decay: Weight
    clip_norm: Positive
    relative_rate: bool = False
    label_smoothing: Rate = 0.0
    updates: CountOrNone = 0


def descent(
    clip_norm: float, weight_decay: float, relative_rate: bool
) -> optax.GradientTransformation:
    """Makes AdamW of the clipped gradient, before the learning rate; arguments as in
    `JointConfig`.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.scale_by_adam(),
        optax.scale_by_param_block_rms() if relative_rate else optax.identity(),
        optax.add_decayed_weights(weight_decay),
    )


# Packed rows come in multiples of this in each part, so that few shapes are compiled.
ROW_MULTIPLE = 8
# Examples at the start of the stream whose batches decide how many rows one has.
_LOOKED_AT = 4096
# Batches made while one trains.
_AHEAD = 4


def packed_batch(
    examples: Sequence[Example],
    config: JointConfig,
    least_rows: int = 0,
    row_multiple: int = ROW_MULTIPLE,
) -> dict[str, np.ndarray]:
    """Examples packed into rows, padded with empty rows.

    Args:
      least_rows: rows at least; beyond, as many as a multiple of each part's rows needs.
      row_multiple: of the rows of each part.

    Returns:
      The arrays of `packing.to_packed_batch`, [R, T] and [R, S].
    """
    rows = packing.rows_of(examples, config.row_inputs, config.row_targets)
    multiple = row_multiple * config.accumulate
    # Rows are filled longest prompts first, so that every part gets some of each kind.
    parts = [rows[i :: config.accumulate] for i in range(config.accumulate)]
    size = -(-max(len(rows), least_rows) // multiple) * row_multiple
    padded: list[list[int]] = [r for part in parts for r in [*part, *[[]] * (size - len(part))]]
    return packing.to_packed_batch(examples, padded, config.row_inputs, config.row_targets)


def token_losses(logits: jax.Array, targets: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Returns -log P(y_t | y_<t, Ins) of Eq. 12 in nats, float32 [B, S]; 0 at padding.

    Args:
      logits: float32 [B, S, W].
      targets: int32 [B, S]; 0 is padding.
      label_smoothing: share of a target's probability that goes to the W - 1 others alike.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    if label_smoothing:
        words = logits.shape[-1]
        others = jax.nn.logsumexp(logits, -1) * words - logits.sum(-1) - losses
        losses = (1.0 - label_smoothing) * losses + label_smoothing / (words - 1) * others
    return jnp.where(targets > 0, losses, 0.0)


class JointTask:
    """Trains GenSAR's network on the mixture of tasks, as a `core.task.Task`.

    Args:
      network: T5 over the vocabulary of text, behaviours and codes.
      stream: examples of an endless stream by their places in it.
      examples_per_epoch: of that stream.
      evaluate: validation metrics of (params, tables).
      selection: the metric among them that decides.
      tables: constant arrays kept with the parameters in every checkpoint.
      seed: of parameters and dropout.
      initial: the parameters to start from; None means random ones.
      partition: the mesh to train on; None means one device.
      packed_for: devices over which the rows of a batch divide; None takes those of `partition`.
      name: of the stage.
    """

    name: str = "joint"

    def __init__(
        self,
        network: Transformer,
        config: JointConfig,
        *,
        stream: Stream,
        examples_per_epoch: int,
        evaluate: Callable[[Any, Any], dict[str, float]],
        selection: str,
        tables: dict[str, np.ndarray],
        seed: int,
        initial: Callable[[], Any] | None = None,
        partition: Partition | None = None,
        packed_for: int | None = None,
        name: str = "joint",
    ):
        self.name = name
        self.network, self.config, self.partition = network, config, partition
        devices = packed_for or (1 if partition is None else partition.size)
        self._row_multiple = math.lcm(ROW_MULTIPLE, devices)
        self.selection, self.batch_size = selection, config.batch_size
        self.steps_per_epoch = max(1, round(examples_per_epoch / config.batch_size))
        by_epochs = max(1, round(config.epochs * examples_per_epoch / config.batch_size))
        self.max_steps = config.updates or by_epochs
        self._stream, self._evaluate = stream, evaluate
        self._tables, self._seed, self._initial = tables, seed, initial
        self._optimizer = descent(config.clip_norm, config.weight_decay, config.relative_rate)

    def init(self) -> State:
        shardings = None
        if self.partition is not None:
            shardings = self.partition.shardings(jax.eval_shape(self.random_state))
        if self._initial is None:
            return jax.jit(self.random_state, out_shardings=shardings)()
        params = self._initial()
        if shardings is not None:
            params = jax.tree.map(placed, params, shardings["params"])
        return jax.jit(self._first, out_shardings=shardings)(params)

    def random_state(self) -> State:
        """Returns a state of random parameters, whatever `initial` is: it has every state's
        shapes.
        """
        token = jnp.ones((1, 1), jnp.int32)
        init = functools.partial(self.network.init, enable_dropout=False)
        return self._first(init(jax.random.key(self._seed), token, token, token)["params"])

    def _first(self, params: Any) -> State:
        return {
            "step": jnp.int32(0),
            "params": params,
            "optimizer": self._optimizer.init(params),
            "tables": {name: jnp.asarray(array) for name, array in self._tables.items()},
        }

    def batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields packed batches, made ahead; update s has the examples from s * batch_size on,
        whole.

        Each of several processes packs them all and yields its part of the rows.
        """
        # Every batch has the rows that the largest of the first ones needs; a larger one that comes
        # later has more, and costs a compilation.
        looked_at = range(max(1, _LOOKED_AT // self.batch_size))
        rows = max(len(self._packed(step, 0)["encoder_input_tokens"]) for step in looked_at)
        # One thread: writing prompts holds Python's lock.
        make = functools.partial(self._own_part, rows=rows)
        yield from ahead(make, start_step, count=_AHEAD, threads=1)

    def _own_part(self, step: int, rows: int) -> dict[str, np.ndarray]:
        batch = self._packed(step, rows)
        own = own_rows(len(batch["encoder_input_tokens"]))
        return {name: array[own] for name, array in batch.items()}

    def _packed(self, step: int, least_rows: int) -> dict[str, np.ndarray]:
        first = step * self.batch_size
        examples = self._stream(first, first + self.batch_size)
        return packed_batch(examples, self.config, least_rows, self._row_multiple)

    def evaluate(self, state: State) -> dict[str, float]:
        return self._evaluate(state["params"], state["tables"])

    def loss_sum(self, params: Any, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        """Returns Eq. 12 summed over all targets of a packed batch."""
        arguments: dict[str, Any] = batch
        rngs = {"dropout": key}
        logits: Any = self.network.apply({"params": params}, **arguments, rngs=rngs)
        smoothing = self.config.label_smoothing
        return token_losses(logits, batch["decoder_target_tokens"], smoothing).sum()

    def train_step(
        self, state: State, batch: dict[str, Any], learning_rate: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        """Updates once by the mean over the batch's target tokens, whatever `accumulate` is."""
        count = self.config.accumulate
        parts = jax.tree.map(lambda a: a.reshape(count, -1, a.shape[-1]), batch)
        if self.partition is not None:
            # Every part over all devices, not some parts on each.
            each = NamedSharding(self.partition.mesh, PartitionSpec(None, BATCH_AXES))
            parts = jax.lax.with_sharding_constraint(parts, each)
        impl = random_bits_impl(self.partition)
        key = jax.random.fold_in(jax.random.key(self._seed, impl=impl), state["step"])
        params = state["params"]

        def add(total, numbered):
            number, part = numbered
            loss_and_gradient = jax.value_and_grad(self.loss_sum)(
                params, part, jax.random.fold_in(key, number)
            )
            return jax.tree.map(jnp.add, total, loss_and_gradient), None

        nothing = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
        (loss, gradient), _ = jax.lax.scan(add, nothing, (jnp.arange(count), parts))
        targets = batch["decoder_target_tokens"]
        tokens = (targets > 0).sum()
        read = tokens + (batch["encoder_input_tokens"] > 0).sum()
        gradient = jax.tree.map(lambda g: g / tokens, gradient)
        updates, optimizer = self._optimizer.update(gradient, state["optimizer"], params)
        rate = learning_rate * rate_at(state["step"], self.max_steps, self.config.warmup)
        stats = {
            "loss": loss / tokens,
            "padding": 1.0 - read / (batch["encoder_input_tokens"].size + targets.size),
        }
        return {
            "step": state["step"] + 1,
            "params": optax.apply_updates(params, optax.tree.scale(-rate, updates)),
            "optimizer": optimizer,
            "tables": state["tables"],
        }, stats
