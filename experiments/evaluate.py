"""Evaluates a trained workdir again."""

from __future__ import annotations

from collections.abc import Sequence

from core import results
from core.errors import UserError
from core.loop import finite_scores
from experiments.restored import Restored


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


def columns(restored: Restored, task: str | None, given: Sequence[str] | None) -> list[str]:
    """Returns what is to be measured: columns of some protocols, or of the run's own test.

    Args:
      task: 'recommendation' or 'search'; None for the task that the run is tested on.
      given: protocols; None for the protocols of the run's config.

    Raises:
      UserError: a task or protocol that the run does not have, or none at all.
    """
    experiment = restored.experiment
    task, protocols = experiment.tested_on(task)
    if given is not None:
        protocols = tuple(given)
    elif not protocols:
        experiment.columns(task, "full")  # refuses a task that the run does not have
        raise UserError(
            f"expected --protocols, since the run in {restored.workdir.path} has none of {task} in "
            "its config.eval, found none; name some"
        )
    names = [name for protocol in protocols for name in experiment.columns(task, protocol)]
    return list(dict.fromkeys(names))
