"""Writes the vectors a run has learnt, for instance of items as GenSAR's collaborative input.

    python -m launch.export_vectors --workdir=W --out=items.npy [--table=item] [--stage=S]

items.npy holds float32 [V, D], one row an item; items.ids.txt their ids as in the raw data, one a
line in the same order; items.json what they come from, a hash over both and the files' checksums.
"""

from __future__ import annotations

from absl import flags

from core import cli
from core.errors import UserError


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder or address of a run of launch.train.")
    flags.DEFINE_string("out", None, "The .npy file to write.")
    flags.DEFINE_string("table", "item", "Which vectors: item, user or word.")
    flags.DEFINE_string(
        "stage", None, "train, rl or control; default rl where it was trained, else train."
    )


def check_flags() -> None:
    if not flags.FLAGS.workdir or not flags.FLAGS.out:
        raise UserError("expected --workdir=W and --out=FILE.npy, found one missing; pass both")


cli.begin(__name__, define_flags, check_flags)


from experiments.export_vectors import check_place, export
from experiments.restored import Restored


def main() -> None:
    check_place(flags.FLAGS.out)
    restored = Restored(flags.FLAGS.workdir, flags.FLAGS.stage)
    description = export(restored, flags.FLAGS.table, flags.FLAGS.out)
    rows, width = description["shape"]
    print(f"{flags.FLAGS.out}: {rows} vectors of width {width}, hash {description['hash']}")


if __name__ == "__main__":
    cli.run(main)
