"""Writes GenSAR's examples for T5X: SeqIO's files, the vocabulary and the identifiers.

    python -m launch.export_t5x --config=configs/gensar_amazon_beauty.py --out=E [--epochs=1]

Training examples are those of the first epochs of the stream that launch.train reads, with their
phrasings, by task; of validation and test, the users that the config evaluates. launch.t5x trains
from the folder E.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from core.errors import UserError
from launch import cli


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Config file: configs/gensar_DATASET.py.")
    flags.DEFINE_string("out", None, "The folder to write.")
    flags.DEFINE_integer("epochs", 1, "Epochs of the training stream.", lower_bound=1)


def check_flags() -> None:
    if flags.FLAGS.config is None or not flags.FLAGS.out:
        raise UserError("expected --config=FILE and --out=FOLDER, found one missing; pass both")


cli.begin(__name__, define_flags, check_flags)

from collections.abc import Iterator
from typing import Any

import numpy as np

from gensar_jax.t5x_bridge import exported
from gensar_jax.t5x_bridge.exported import Export, Record
from input_pipelines import candidates
from launch.data import Data, resolve
from launch.gensar import GenSARExperiment

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
      given: keys that the command line set (`launch.data.resolve`).

    Raises:
      UserError: a mistake in the config or the data, another method, or no new folder.
    """
    config = resolve(config, given)
    if config.method != "gensar":
        raise UserError(
            f"expected a config of method gensar, found {config.method!r}; pass "
            "configs/gensar_NAME.py"
        )
    exported.check_place(out)
    data = Data(config)
    experiment = GenSARExperiment(config, data)
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
    examples, mixture = experiment.examples, experiment.examples.mixture
    total = epochs * mixture.examples_per_epoch
    for start in range(0, total, _AT_ONCE):
        stop = min(start + _AT_ONCE, total)
        found = mixture.at(np.arange(start, stop))
        for number, example in zip(found.task.tolist(), examples.stream(start, stop), strict=True):
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


def main() -> None:
    values = flags.FLAGS
    holder: Any = values["config"]
    given = config_flags.get_override_values(holder)
    found = export(values.config, values.out, values.epochs, given)
    print(f"{values.out}: {found.data}")
    for task, sizes in found.sizes.items():
        print(f"{task}: {', '.join(f'{split} {size}' for split, size in sizes.items())}")


if __name__ == "__main__":
    cli.run(main)
