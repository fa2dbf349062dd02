"""Wraps GenSAR's network and optimizer as T5X's, for gin files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax
from t5x import optimizers
from t5x.examples.t5 import network

from core.errors import UserError
from core.schedules import rate_at
from gensar_jax.joint_task import descent
from gensar_jax.t5.config import T5Config, of_size
from gensar_jax.t5x_bridge import exported


def network_config(folder: str, size: str, **settings: Any) -> network.T5Config:
    """Returns T5X's configuration of a size of `gensar_jax.t5.config`, for a folder's vocabulary.

    Args:
      folder: of launch.export_t5x.
      size: its name.
      **settings: any attribute of our `T5Config` set otherwise, such as dtype or dropout_rate.

    Raises:
      UserError: no such folder, size or setting.
    """
    try:
        config = of_size(size, exported.read(folder).vocab_size, **settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"network_config: {error}; see gensar_jax/t5/config.py") from None
    return as_t5x(config)


def as_t5x(config: T5Config) -> network.T5Config:
    """Writes the same network in T5X's words.

    Raises:
      UserError: relative positions other than T5X's, which are fixed.
    """
    if (config.num_buckets, config.max_distance) != (32, 128):
        raise UserError(
            f"expected 32 buckets up to distance 128, as T5X has them, found {config.num_buckets} "
            f"up to {config.max_distance}; leave them"
        )
    return network.T5Config(
        vocab_size=config.vocab_size,
        dtype=config.compute_dtype,
        emb_dim=config.emb_dim,
        num_heads=config.num_heads,
        num_encoder_layers=config.num_encoder_layers,
        num_decoder_layers=config.num_decoder_layers,
        head_dim=config.head_dim,
        mlp_dim=config.mlp_dim,
        mlp_activations=config.mlp_activations,
        dropout_rate=config.dropout_rate,
        logits_via_embedding=config.logits_via_embedding,
        # Ours are float32 in either dtype.
        float32_attention_logits=True,
    )


def learning_rate(peak: float, total_steps: int, warmup: float) -> Callable[[Any], jax.Array]:
    """Returns the schedule of `JointTask`: a linear rise over a share of the steps, then a
    cosine to 0.
    """
    return lambda step: peak * rate_at(step, total_steps, warmup)


def optimizer(
    schedule: Callable[[Any], jax.Array],
    weight_decay: float,
    clip_norm: float,
    relative_rate: bool,
    microbatches: int,
) -> optimizers.OptimizerDef:
    """Returns the optimizer of `JointTask`, with its schedule; arguments as in `JointConfig`.

    T5X adds up the means of its microbatches, in the loss that it reports too; here they are
    averaged before the clipping.
    """
    return optimizers.OptaxWrapper(
        optax.chain(
            optax.scale(1.0 / microbatches),
            descent(clip_norm, weight_decay, relative_rate),
            optax.scale_by_learning_rate(schedule),
        )
    )
