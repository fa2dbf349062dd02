"""Evaluates a trained workdir again."""

from __future__ import annotations

from ml_collections import config_dict

from core import results
from core.errors import UserError
from core.loop import finite_scores
from experiments.restored import Restored

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
        origin=restored.data.origin,
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
