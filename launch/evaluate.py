"""Evaluates a trained workdir again.

    python -m launch.evaluate --workdir=W [--split=test] [--stage=rl] [--protocols=neg99,full]
    python -m launch.evaluate --workdir=W --task=search --protocol=bm25_99       # GenSAR

In a notebook: `Restored(workdir)` from `launch.restore`, then `evaluate(restored, "test", "full")`.
"""

from __future__ import annotations

from absl import flags

from core.errors import UserError
from launch import cli, results
from launch.restore import Restored


def evaluate(restored: Restored, split: str, protocol: str) -> dict:
    """Evaluates and saves one row of results.json, which it returns.

    Args:
      protocol: one of the experiment's `columns`, such as 'neg99', or GenSAR's 'search/full'.
    """
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
        **restored.experiment.details(split, protocol),
    )


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of a run of launch.train.")
    flags.DEFINE_string("split", "test", "validation or test.")
    flags.DEFINE_string(
        "stage", None, "pretrain, rl or control; default rl where it was trained, else pretrain."
    )
    flags.DEFINE_string("task", "recommendation", "recommendation, or of GenSAR search.")
    flags.DEFINE_string("protocol", None, "One of the protocols, instead of --protocols.")
    flags.DEFINE_list(
        "protocols", ["neg99", "full"], "Any of neg99, neg99pop, full; bm25_99 of searches."
    )


def main() -> None:
    if not flags.FLAGS.workdir:
        raise UserError("expected --workdir=W, found none; pass the folder of a run")
    values = flags.FLAGS
    if values.split not in ("validation", "test"):
        raise UserError(
            f"expected --split validation or test, found {values.split!r}; pass one of them"
        )
    protocols = values.protocols if values.protocol is None else [values.protocol]
    restored = Restored(values.workdir, values.stage)
    columns = [c for p in protocols for c in restored.experiment.columns(values.task, p)]
    rows = [evaluate(restored, values.split, column) for column in columns]
    results.print_table({"rows": rows}, values.split)


if __name__ == "__main__":
    cli.run(main, define_flags)
