"""Registers GenSAR's tasks and their mixture with SeqIO (paper, 3.3), from a folder of
launch.export_t5x.
"""

from __future__ import annotations

import functools

import seqio
import tensorflow as tf

from core.errors import UserError
from gensar_jax.t5x_bridge import exported
from gensar_jax.t5x_bridge.vocabulary import GenSARVocabulary

MIXTURE = "gensar"
_TOKENS = tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)
_FIELDS = {
    "inputs": _TOKENS,
    "targets": _TOKENS,
    "user": tf.io.FixedLenFeature([], tf.string),
    "item": tf.io.FixedLenFeature([], tf.int64),
    "seen": _TOKENS,
}


def mixture(folder: str) -> str:
    """Registers all tasks, at the rates of the config that was exported; the mixture's name.

    T5X looks tasks up by name. A second folder in the same process takes the names over.

    Raises:
      UserError: no such folder.
    """
    _register(folder)
    return MIXTURE


def task(folder: str, name: str) -> str:
    """Registers all tasks; the registered name of one: 'nrip', 'nsip', ...

    Raises:
      UserError: no such folder, or it has no such task.
    """
    names = _register(folder)
    if name not in names:
        raise UserError(
            f"expected a task of {', '.join(names)} in {folder}, found {name!r}; pass one of them"
        )
    return names[name]


def feature_lengths(folder: str) -> dict[str, int]:
    """Tokens of a packed row of inputs and of targets."""
    export = exported.read(folder)
    return {"inputs": export.inputs, "targets": export.targets}


def total_steps(folder: str, epochs: float, examples_per_step: float) -> int:
    """Updates that see the mixture's examples `epochs` times."""
    return max(1, round(epochs * sum(exported.read(folder).rates.values()) / examples_per_step))


@functools.lru_cache(maxsize=1)
def _register(folder: str) -> dict[str, str]:
    """Registers the tasks; returns each one's registered name."""
    export, vocabulary = exported.read(folder), GenSARVocabulary(folder)
    # Prompts and targets have their end already.
    feature = seqio.Feature(vocabulary, add_eos=False)
    names = {name: f"{MIXTURE}_{name}" for name in export.sizes}
    for registry in (seqio.MixtureRegistry, seqio.TaskRegistry):
        for name in list(registry.names()):
            if name == MIXTURE or name.startswith(f"{MIXTURE}_"):
                registry.remove(name)
    for name, sizes in export.sizes.items():
        seqio.TaskRegistry.add(
            names[name],
            source=seqio.TFExampleDataSource(
                {split: exported.pattern(folder, name, split) for split, n in sizes.items() if n},
                feature_description=_FIELDS,
                num_input_examples=sizes,
            ),
            preprocessors=[_as_int32],
            output_features={"inputs": feature, "targets": feature},
        )
    rates = [(names[name], float(rate)) for name, rate in export.rates.items()]
    seqio.MixtureRegistry.add(MIXTURE, rates)
    return names


@seqio.map_over_dataset
def _as_int32(fields):
    tokens = {name: tf.cast(fields[name], tf.int32) for name in ("inputs", "targets")}
    return {**fields, **tokens}
