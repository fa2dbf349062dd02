"""Writes GenSAR's examples for T5X: SeqIO's files, the vocabulary and the identifiers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from core.errors import UserError
from experiments.resolve import resolve
from gensar_jax.experiment import GenSARExperiment
from gensar_jax.identifiers import LEVELS
from gensar_jax.t5x_bridge import exported
from gensar_jax.t5x_bridge.exported import Export, Record
from input_pipelines import candidates
from input_pipelines.dataset import Dataset

# The task of the mixture whose targets launch.evaluate ranks.
_EVALUATED = {"recommendation": "nrip", "search": "nsip"}
_AT_ONCE = 4096


def export(config: Any, out: str, epochs: int, given: Any = ()) -> Export:
    """Writes the folder `out`.

    Args:
      config: of method gensar, as its file returns it.
      out: a new folder.
      epochs: of the stream; in each the sampled tasks have other examples, and all have other
        phrasings.
      given: keys that the command line set (`experiments.resolve.resolve`).

    Raises:
      UserError: a mistake in the config or the data, another method, or no new folder.
    """
    config = resolve(config, given)
    if config.method != "gensar":
        raise UserError(
            f"expected a config of method gensar, found {config.method!r}; pass "
            "configs/gensar.py:DATASET"
        )
    exported.check_place(out)
    data = Dataset(config)
    experiment = GenSARExperiment(config, data)
    experiment.train_identifiers()
    assert experiment.table is not None
    if experiment.table.alphabet != LEVELS:
        raise UserError(
            "expected identifiers of one code a level for T5X, found some of any length; export "
            "GenSAR or another variant with such identifiers"
        )
    examples, mixture = experiment.examples, experiment.examples.mixture
    evaluated = ["recommendation"] + ["search"] * bool(config.eval.search_protocols)
    splits: dict[str, list[str]] = {task: ["train"] for task in mixture.tasks}
    for task in evaluated:
        splits.setdefault(_EVALUATED[task], []).extend(["validation", "test"])
    return exported.write(
        out,
        _records(experiment, evaluated, epochs),
        vocabulary=examples.vocabulary,
        identifiers=examples.identifiers,
        items=[str(name) for name in data.log.item_ids.tolist()[1:]],
        splits=splits,
        description={
            "inputs": config.train.row_inputs,
            "targets": config.train.row_targets,
            "rates": mixture.counts,
            "forced": {task: examples.forced(task) for task in _EVALUATED},
            "data": data.label,
            "data_hash": data.log.hash,
            "table_hash": experiment.table_hash,
        },
    )


def _records(experiment: GenSARExperiment, evaluated: list[str], epochs: int) -> Iterator[Record]:
    assert experiment.table is not None
    if experiment.table.alphabet != LEVELS:
        raise UserError(
            "expected identifiers of one code a level for T5X, found some of any length; export "
            "GenSAR or another variant with such identifiers"
        )
    examples, mixture = experiment.examples, experiment.examples.mixture
    total = epochs * mixture.examples_per_epoch
    for start in range(0, total, _AT_ONCE):
        stop = min(start + _AT_ONCE, total)
        places = mixture.at(np.arange(start, stop))
        for number, example in zip(places.task.tolist(), examples.stream(start, stop), strict=True):
            yield Record(mixture.tasks[number], "train", example)
    log = experiment.data.log
    for task in evaluated:
        for split in ("validation", "test"):
            held_out, _ = experiment.evaluated(task, split)
            targets, _ = candidates.targets(log, held_out)
            seen = candidates.seen_items(log, held_out)
            written = examples.evaluation_examples(held_out)
            for row, example in enumerate(written):
                yield Record(
                    _EVALUATED[task],
                    split,
                    example,
                    user=str(log.user_ids[held_out.user[row]]),
                    item=int(targets[row]),
                    seen=seen[row][seen[row] > 0].tolist(),
                )
