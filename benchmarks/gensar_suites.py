"""Measures GenSAR for `launch.benchmark`: training steps of the RQ-VAE and of the joint network."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.timing import measure_training
from gensar_jax.identifier_task import IdentifierTask, TrainingConfig
from gensar_jax.joint_task import JointConfig, JointTask
from gensar_jax.prompts import Example
from gensar_jax.rqvae import RQVAE, RQVAEConfig
from gensar_jax.t5.config import of_size
from gensar_jax.t5.network import Transformer

# Of the offline vectors, and of the vocabulary on Amazon Beauty.
_VECTOR_WIDTH, _WORDS = 192, 5540
# Tokens of prompts and targets there: mean, deviation, least.
_PROMPT, _TARGET = (95, 35, 15), 6
_EXAMPLES = 256


def identifiers_step(bench: Any) -> None:
    """Measures the RQ-VAE with its quantiser, Sinkhorn and the update, at the released code's
    sizes.
    """
    items = bench.scale.catalogue
    rng = np.random.default_rng(0)
    config = RQVAEConfig(codes=min(256, items // 2))
    vectors = {
        source: rng.standard_normal((items, _VECTOR_WIDTH), np.float32) for source in config.sources
    }
    training = TrainingConfig(
        batch_size=bench.scale.batch,
        epochs=100,
        weight_decay=1e-5,
        clip_norm=1.0,
        kmeans_iterations=1,
        revive_after=2.0,
    )
    model = RQVAE(config, (_VECTOR_WIDTH,) * len(config.sources))
    task = IdentifierTask(model, training, vectors, seed=0)
    timing = measure_training(task, task.init(), bench.scale.repeats)
    rate = task.batch_size / timing.seconds
    bench.add("RQ-VAE, training", rate, "items/s", timing=timing)
    bench.add_share("RQ-VAE, training", timing, 0.5)


def joint_step(bench: Any) -> None:
    """Measures GenSAR's network at the size for CPUs, on packed rows of made-up prompts."""
    size = "cpu" if bench.scale.marked else "tiny"
    settings = JointConfig(
        batch_size=min(_EXAMPLES, 8 * bench.scale.batch),
        row_inputs=256,
        row_targets=32,
        accumulate=1,
        epochs=1.0,
        warmup=0.01,
        weight_decay=1e-7,
        clip_norm=1.0,
    )

    def stream(start: int, stop: int) -> list[Example]:
        rng = np.random.default_rng(start)
        mean, deviation, least = _PROMPT
        lengths = rng.normal(mean, deviation, stop - start).clip(least, settings.row_inputs)
        return [
            Example(
                rng.integers(3, _WORDS, int(length)).tolist(),
                rng.integers(3, _WORDS, _TARGET).tolist(),
            )
            for length in lengths
        ]

    task = JointTask(
        Transformer(of_size(size, _WORDS, dtype=bench.dtype)),
        settings,
        stream=stream,
        examples_per_epoch=100 * settings.batch_size,
        evaluate=lambda params, tables: {},
        selection="",
        tables={},
        seed=0,
    )
    timing = measure_training(task, task.init(), bench.scale.repeats)
    rate = settings.batch_size / timing.seconds
    bench.add("GenSAR, joint training", rate, "examples/s", timing=timing)
