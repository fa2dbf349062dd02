"""Evaluates a trained workdir again.

    python -m launch.evaluate --workdir=W [--split=test] [--stage=rl] [--protocols=neg99,full]
    python -m launch.evaluate --workdir=W --task=search --protocol=bm25_99       # GenSAR

Without --protocols it is against those that the run itself is tested on, its config.eval.protocols;
for --task=search, and runs that answer searches alone, its config.eval.search_protocols.
In a notebook: `Restored(workdir)` from `launch.restore`, then `evaluate(restored, "test", "full")`.
"""

from __future__ import annotations

from absl import flags

from core.errors import UserError
from launch import cli


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of a run of launch.train.")
    flags.DEFINE_string("split", "test", "validation or test.")
    flags.DEFINE_string(
        "stage", None, "pretrain, rl or control; default rl where it was trained, else pretrain."
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
        "default those of the run's config.",
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
            "for those of the run's config"
        )


cli.begin(__name__, define_flags, check_flags)

from ml_collections import config_dict

from core.loop import finite_scores
from launch import results
from launch.restore import Restored

_SEARCHES_ALONE = ("crs", "search_baseline")


def evaluate(restored: Restored, split: str, protocol: str) -> dict:
    """Evaluates and saves one row of results.json, which it returns.

    Args:
      protocol: one of the experiment's `columns`, such as 'neg99', or GenSAR's 'search/full'.

    Raises:
      UserError: no such protocol; scores are NaN.
    """
    with finite_scores(
        f"in stage {restored.stage} against {protocol}",
        "pass another --stage, or train again in another --workdir",
    ):
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


def tested_on(config: config_dict.ConfigDict, task: str | None) -> tuple[str, tuple[str, ...]]:
    """A task and its protocols of a run's own test; of no task the one that it is tested on."""
    clicks = config.eval.get("protocols", ())
    # Runs of CRS of before there was the key.
    before = ("catalogue",) if config.method == "crs" else ()
    searches = config.eval.get("search_protocols", before)
    if task is None:
        alone = config.method in _SEARCHES_ALONE or (searches and not clicks)
        task = "search" if alone else "recommendation"
    return task, tuple(searches if task == "search" else clicks)


def _columns(restored: Restored, task: str | None, given: list[str] | None) -> list[str]:
    task, protocols = tested_on(restored.experiment.config, task)
    if given is not None:
        protocols = tuple(given)
    elif not protocols:
        restored.experiment.columns(task, "full")  # refuses a task that the run does not have
        raise UserError(
            f"expected --protocols, since the run in {restored.workdir.path} has none of {task} in "
            "its config.eval, found none; name some"
        )
    found = [c for p in protocols for c in restored.experiment.columns(task, p)]
    return list(dict.fromkeys(found))


def main() -> None:
    values = flags.FLAGS
    restored = Restored(values.workdir, values.stage)
    columns = _columns(restored, values.task, _given_protocols())
    rows = [evaluate(restored, values.split, column) for column in columns]
    results.print_table({"rows": rows}, values.split)


if __name__ == "__main__":
    cli.run(main)
