"""Writes GenSAR's examples for T5X: SeqIO's files, the vocabulary and the identifiers.

    python -m launch.export_t5x --config=configs/gensar.py:amazon_beauty --out=E [--epochs=1]

Training examples come from the first epochs of the stream that launch.train reads, with their
phrasings, by task; examples of validation and test are of the users that the config evaluates.
launch.t5x trains from the folder E.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from core import cli
from core.errors import UserError


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Config file: configs/gensar.py:DATASET.")
    flags.DEFINE_string("out", None, "The folder to write.")
    flags.DEFINE_integer("epochs", 1, "Epochs of the training stream.", lower_bound=1)


def check_flags() -> None:
    if flags.FLAGS.config is None or not flags.FLAGS.out:
        raise UserError("expected --config=FILE and --out=FOLDER, found one missing; pass both")


cli.begin(__name__, define_flags, check_flags)


from typing import Any

from experiments.export_t5x import export


def main() -> None:
    values = flags.FLAGS
    holder: Any = values["config"]
    given = config_flags.get_override_values(holder)
    exported = export(values.config, values.out, values.epochs, given)
    print(f"{values.out}: {exported.data}")
    for task, sizes in exported.sizes.items():
        print(f"{task}: {', '.join(f'{split} {size}' for split, size in sizes.items())}")


if __name__ == "__main__":
    cli.run(main)
