"""Runs the self-evolving loop of CRS, 3.2 and Eq. 2, over stages that can each be resumed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from crs_jax.subsets import Case, Subsets

_LOG = logging.getLogger(__name__)
# (stage, iteration, its cases, parameters before) -> parameters after.
Train = Callable[[str, int, list[Case], Any], Any]
# (parameters, stage that the cases are for, iteration) -> cases of the training corpus.
Collect = Callable[[Any, str, int], list[Case]]


def rl_stage(iteration: int) -> str:
    """Names the stage M_rl^i."""
    return f"rl_{iteration}"


def sft_stage(iteration: int) -> str:
    """Names the stage M_sft^i; M_sft^0 is the distilled model."""
    return f"sft_{iteration}"


def sft_only_stage(iteration: int) -> str:
    """Names the variant without RL after i rounds (4.3)."""
    return f"sft_only_{iteration}"


def evolve(
    params: Any,
    iterations: int,
    subsets: Subsets,
    *,
    to_reinforce: Collect,
    correct: Collect,
    reinforce: Train,
    fine_tune: Train,
) -> str | None:
    """Runs Eq. 2 from M_sft^0.

    Args:
      params: of M_sft^0.
      iterations: of the loop.
      subsets: where D_rl and D_sft are kept; a subset that is there is not collected again.
      to_reinforce, correct: collect D_rl^i and D_sft^i.
      reinforce, fine_tune: train a stage, or continue it.

    Returns:
      Why the loop ended early, or None.
    """
    for iteration in range(iterations):
        stage = rl_stage(iteration)
        cases = subsets.get(stage, functools.partial(to_reinforce, params, stage, iteration))
        if not cases:
            return _early(f"no cases to reinforce are left for {stage}")
        _LOG.info("%s: %d cases to reinforce", stage, len(cases))
        params = reinforce(stage, iteration, cases, params)
        stage = sft_stage(iteration + 1)
        params = _fine_tuned(stage, iteration, params, subsets, correct, fine_tune)
        if params is None:
            return _early(f"there are no correct cases for {stage}")
    return None


def evolve_without_rl(
    params: Any, iterations: int, subsets: Subsets, *, correct: Collect, fine_tune: Train
) -> str | None:
    """Runs the variant of 4.3: each iteration fine-tunes on what the model before it got right."""
    for iteration in range(iterations):
        stage = sft_only_stage(iteration + 1)
        params = _fine_tuned(stage, iteration, params, subsets, correct, fine_tune)
        if params is None:
            return _early(f"there are no correct cases for {stage}")
    return None


def _fine_tuned(
    stage: str,
    iteration: int,
    params: Any,
    subsets: Subsets,
    correct: Collect,
    fine_tune: Train,
) -> Any:
    """Returns the parameters after a stage on what its forerunner got right; None without such
    cases.
    """
    cases = subsets.get(stage, functools.partial(correct, params, stage, iteration))
    if not cases:
        return None
    _LOG.info("%s: %d correct cases", stage, len(cases))
    return fine_tune(stage, iteration, cases, params)


def _early(reason: str) -> str:
    message = f"{reason}: the loop ends early"
    _LOG.info(message)
    return message
