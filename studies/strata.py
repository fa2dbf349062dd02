"""Examples of a split by what may make them easy or hard: label -> bool [E].

Each function takes the folder of a run, whose data tell, and the split.
"""

from __future__ import annotations

import itertools

import numpy as np
from ml_collections import config_dict

from core.errors import UserError
from core.workdir import Workdir
from experiments.restored import read_run_config, settings_named
from input_pipelines import search_protocol
from input_pipelines.dataset import Dataset

_NOISE_EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)
_HEAD_SHARE = 0.2


def noise_strata(workdir: str, split: str) -> dict[str, np.ndarray]:
    """Groups examples by the share of noise in the searches before: label -> bool [E].

    Raises:
      UserError: the run is not on sample data.
    """
    from input_pipelines.sample.truth import noise_share

    data = data_of(read_run_config(Workdir(workdir)), workdir)
    if not data.log.is_sample:
        raise UserError(
            f"expected runs on sample data for --strata=noise, found {data.label} in {workdir}; "
            "elsewhere nobody knows which searches are noise"
        )
    share = noise_share(data.log, data.split(split))
    strata = {"no searches": np.isnan(share), "noise 0": share == 0.0}
    strata |= {
        f"noise ({low:g}, {high:g}]": (share > low) & (share <= high)
        for low, high in itertools.pairwise(_NOISE_EDGES)
    }
    return {label: chosen for label, chosen in strata.items() if chosen.any()}


def hops_strata(workdir: str, split: str) -> dict[str, np.ndarray]:
    """Groups examples by the links between last search and target: label -> bool [E].

    Raises:
      UserError: the run is not on the sample that has them.
    """
    from input_pipelines.sample.hops import hops

    config = read_run_config(Workdir(workdir))
    with settings_named(Workdir(workdir)):
        has_hops = not config.data_dir and config.on_sample.hops
    if not has_hops:
        raise UserError(
            f"expected runs with --config.on_sample.hops=True for --strata=hops, found {workdir} "
            "without; elsewhere nobody knows the steps"
        )
    data = data_of(config, workdir)
    steps = hops(data.log, data.split(split))
    return {f"{n} hops": steps == n for n in np.unique(steps).tolist()}


def popularity_strata(workdir: str, split: str) -> dict[str, np.ndarray]:
    """Groups the examples of a split by their target's clicks in training (`popularity_of`)."""
    data = data_of(read_run_config(Workdir(workdir)), workdir)
    items = np.asarray(data.log.rec_items)
    trained, targets = items[data.splits.training_rows], items[data.split(split).target_row]
    return popularity_of(targets, trained, data.log.num_items)


def popularity_of(
    targets: np.ndarray, trained: np.ndarray, num_items: int
) -> dict[str, np.ndarray]:
    """Groups examples by their target's clicks in training: label -> bool [E].

    The head is the fifth of the items that is clicked most, ties by number; the tail is the rest
    of those clicked at all.

    Args:
      targets: int [E], items from 1.
      trained: int [R], the items of the training clicks.
      num_items: V.
    """
    clicks = np.bincount(trained, minlength=num_items + 1)
    order = np.argsort(-clicks[1:], kind="stable") + 1
    head = np.zeros(len(clicks), bool)
    head[order[: round(_HEAD_SHARE * num_items)]] = True
    clicked = clicks[targets] > 0
    strata = {
        "head": head[targets] & clicked,
        "tail": ~head[targets] & clicked,
        "never clicked": ~clicked,
    }
    return {label: chosen for label, chosen in strata.items() if chosen.any()}


def queries_strata(workdir: str, split: str, protocol: str) -> dict[str, np.ndarray]:
    """Groups searches by the queries that users asked before: label -> bool [E] (CRS 4.5).

    Raises:
      UserError: a protocol of another task.
    """
    if not protocol.startswith("search/"):
        raise UserError(
            f"expected a --metric of searches for --strata=queries, found one of {protocol}; pass "
            f"for instance hr@10/{search_protocol.PROTOCOL}"
        )
    config = read_run_config(Workdir(workdir))
    data = data_of(config, workdir)
    examples = search_protocol.held_out(config, data, split)
    counted = search_protocol.counted(data.log, examples, protocol)
    return {
        f"{fewest} to {most} queries": chosen[counted]
        for fewest, most, chosen in search_protocol.groups_of_users(data, examples)
        if chosen[counted].any()
    }


def data_of(config: config_dict.ConfigDict, workdir: str) -> Dataset:
    """Opens the data of a run. Raises UserError where they are not what it was trained on."""
    with settings_named(Workdir(workdir)):
        data = Dataset(config)
    Workdir(workdir).check_log(data.log.hash)
    return data


KINDS = ("noise", "popularity", "hops", "queries")


def of(kind: str, workdir: str, split: str, protocol: str, examples: int) -> dict[str, np.ndarray]:
    """Returns the strata of one of `KINDS`, for results of so many examples.

    Raises:
      UserError: results of a part of the split or of another task, or as that kind.
    """
    if kind == "queries":
        strata = queries_strata(workdir, split, protocol)
    else:
        of_split = {"noise": noise_strata, "popularity": popularity_strata, "hops": hops_strata}
        strata = of_split[kind](workdir, split)
    known = len(next(iter(strata.values())))
    if examples != known:
        raise UserError(
            f"expected results of {known} examples for --strata={kind}, found {examples}; evaluate "
            f"with config.eval.{split}_users=0, and see that the metric is of the same task and "
            "its protocol leaves nobody out"
        )
    return strata
