"""How CRS and the methods beside it are evaluated: searches against the whole catalogue.

Items seen before stay in the ranking, since a search may look for one again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ml_collections import config_dict

from core import metrics
from core.errors import UserError
from input_pipelines.search_task import SearchExamples
from launch.data import Data

PROTOCOL = "search/catalogue"
_GROUPS = 3


def check(config: config_dict.ConfigDict) -> None:
    """Raises UserError where `config.eval.selection` is no metric of the protocol."""
    known = [metrics.full_name(name, PROTOCOL) for name in config.eval.metrics]
    if config.eval.selection not in known:
        raise UserError(
            f"expected config.eval.selection of {', '.join(known)}, found "
            f"{config.eval.selection!r}; pass one of them"
        )


def columns(task: str, protocol: str) -> tuple[str, ...]:
    """Raises UserError for another task than search, or another protocol than 'catalogue'."""
    if (task, protocol) != ("search", "catalogue"):
        raise UserError(
            f"expected --task=search --protocol=catalogue of this run, found {task!r} and "
            f"{protocol!r}; pass these"
        )
    return (PROTOCOL,)


def held_out(config: config_dict.ConfigDict, data: Data, split: str) -> SearchExamples:
    """The searches of a split that are evaluated, `config.eval.SPLIT_users` at most (0: all)."""
    found, _ = data.chosen("search", split, config.eval[f"{split}_users"])
    assert isinstance(found, SearchExamples)
    return found


def user_groups(data: Data, examples: SearchExamples, sums: metrics.Sums) -> list[dict[str, Any]]:
    """hr@10 of three groups by the number of queries before the one that is asked (CRS 4.5).

    Args:
      sums: of `examples`, in their order.
    """
    name = "hr@10" if "hr@10" in sums.names else sums.names[-1]
    values = sums.per_example()[name]
    count = examples.search_end - np.asarray(data.log.search_offsets)[examples.user]
    # Users of one count stay together.
    edges = np.quantile(count, np.arange(1, _GROUPS) / _GROUPS)
    group = np.searchsorted(edges, count, side="left")
    return [
        {
            "queries": [int(count[group == g].min()), int(count[group == g].max())],
            "examples": int((group == g).sum()),
            name: float(values[group == g].mean()),
        }
        for g in range(_GROUPS)
        if (group == g).any()
    ]
