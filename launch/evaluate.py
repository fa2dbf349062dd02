"""Evaluates a trained workdir again.

    python -m launch.evaluate --workdir=W [--split=test] [--stage=rl] [--protocols=neg99,full]

In a notebook: `Restored(workdir)` from `launch.restore`, then `evaluate(restored, "test", "full")`.
"""

from __future__ import annotations

from absl import flags

from core.errors import UserError
from launch import cli, results
from launch.experiment import PROTOCOLS
from launch.restore import Restored


def evaluate(restored: Restored, split: str, protocol: str) -> dict:
    """Evaluates and saves one row of results.json, which it returns."""
    sums = restored.experiment.evaluate(restored.params, restored.tables, split, protocol)
    return results.save(
        restored.workdir,
        sums,
        stage=restored.stage,
        split=split,
        protocol=protocol,
        step=restored.step,
        config=restored.experiment.config,
        data=restored.data,
    )


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of a run of launch.train.")
    flags.DEFINE_string("split", "test", "validation or test.")
    flags.DEFINE_string("stage", None, "pretrain, rl or control; default the last trained.")
    flags.DEFINE_list("protocols", ["neg99", "full"], "Any of neg99, neg99pop, full.")


def main() -> None:
    if not flags.FLAGS.workdir:
        raise UserError("expected --workdir=W, found none; pass the folder of a run")
    for protocol in flags.FLAGS.protocols:
        if protocol not in PROTOCOLS:
            raise UserError(
                f"expected protocols of {', '.join(PROTOCOLS)}, found {protocol!r}; pass these"
            )
    restored = Restored(flags.FLAGS.workdir, flags.FLAGS.stage)
    rows = [evaluate(restored, flags.FLAGS.split, protocol) for protocol in flags.FLAGS.protocols]
    results.print_table({"rows": rows}, flags.FLAGS.split)


if __name__ == "__main__":
    cli.run(main, define_flags)
