"""Evaluates a trained workdir again.

    python -m launch.evaluate --workdir=W [--split=test] [--stage=rl] [--protocols=neg99,full]
    python -m launch.evaluate --workdir=W --task=search --protocol=bm25_99       # GenSAR

By default, uses the protocols of the run's own config.eval: `protocols`, or for --task=search and
runs that answer searches alone `search_protocols`.
In a notebook: `Restored(workdir)` from `experiments.restored`, then `evaluate(restored, "test",
"full")` from `experiments.evaluate`.
"""

from __future__ import annotations

from absl import flags

from core import cli
from core.errors import UserError


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder or address of a run of launch.train.")
    flags.DEFINE_string("split", "test", "validation or test.")
    flags.DEFINE_string(
        "stage", None, "train, rl or control; default rl where it was trained, else train."
    )
    flags.DEFINE_string(
        "task", None, "recommendation or search; default search of runs that answer nothing else."
    )
    flags.DEFINE_string("protocol", None, "One of the protocols, instead of --protocols.")
    flags.DEFINE_list(
        "protocols",
        None,
        "Of recommendation any of neg99, neg99pop, published99, full; of searches full, catalogue, "
        "neg99, neg99pop, bm25_99, impressions, as far as the method and the data "
        "have them; "
        "by default the protocols of the run's config.",
    )


def _given_protocols() -> list[str] | None:
    values = flags.FLAGS
    return values.protocols if values.protocol is None else [values.protocol]


def check_flags() -> None:
    values = flags.FLAGS
    if not values.workdir:
        raise UserError("expected --workdir=W, found none; pass the folder of a run")
    if values.split not in ("validation", "test"):
        raise UserError(
            f"expected --split validation or test, found {values.split!r}; pass one of them"
        )
    if None not in (values.protocol, values.protocols):
        raise UserError("expected --protocol or --protocols, found both; pass one of them")
    given = _given_protocols()
    if given is not None and not any(given):
        raise UserError(
            "expected protocols after --protocols=, found none; name some, or leave the flag out "
            "for the protocols of the run's config"
        )


cli.begin(__name__, define_flags, check_flags)


from core import results
from core.mirrors import mirrored
from experiments.evaluate import columns, evaluate
from experiments.restored import Restored


def main() -> None:
    values = flags.FLAGS
    with mirrored(values.workdir) as folder:
        restored = Restored(folder, values.stage)
        measured = columns(restored, values.task, _given_protocols())
        rows = [evaluate(restored, values.split, column) for column in measured]
    results.print_table({"rows": rows}, values.split)


if __name__ == "__main__":
    cli.run(main)
