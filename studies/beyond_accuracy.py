"""Measures finished runs beyond one target's rank, from the rankings that evaluations keep.

- recall@K, map@K and mrr@K count all relevant items of a ranking, such as the clicks of one search.
- coverage@K is the share of the catalogue that is in the first K of anybody's list.
- gini@K is the Gini index of how many lists each item of the catalogue is in: 0 where all are in as
  many, towards 1 where few items take all places.
- novelty@K is the mean self-information of the listed items, -log2 of an item's share of the
  training clicks, with one click more for every item, so that no item's is infinite.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.errors import UserError
from core.several_relevant import measure
from core.workdir import Workdir
from experiments.restored import read_run_config
from studies import strata
from studies.ablation.tables import mean_of_seeds
from studies.compare import config_key
from studies.statistics import Row

_NONE = ("recall", "map")  # of one relevant item: the hit rate and mrr


def of_lists(best: np.ndarray, clicks: np.ndarray, cutoff: int) -> dict[str, float]:
    """Returns 'coverage@K', 'gini@K' and 'novelty@K' of lists of items.

    Args:
      best: int [E, k], numbers of items from 1, best first, 0 where there are fewer; k >= K.
      clicks: int [V+1], of every item in training; column 0 is padding.
      cutoff: K.
    """
    listed = best[:, :cutoff]
    listed = listed[listed > 0]
    num_items = len(clicks) - 1
    exposure = np.sort(np.bincount(listed, minlength=num_items + 1)[1:])
    ranks = np.arange(1, num_items + 1)
    gini = np.sum((2 * ranks - num_items - 1) * exposure) / (num_items * exposure.sum())
    information = np.log2((clicks.sum() + num_items) / (clicks + 1.0))
    return {
        f"coverage@{cutoff}": float(np.mean(exposure > 0)),
        f"gini@{cutoff}": float(gini),
        f"novelty@{cutoff}": float(information[listed].mean()),
    }


def table(
    rows: Sequence[Row], workdirs: Sequence[str], split: str, protocol: str, cutoff: int
) -> list[str]:
    """Returns a Markdown table of every row's means over seeds under a protocol.

    Args:
      rows: as `studies.compare.read_rows` gives them for these workdirs.
      cutoff: K.

    Raises:
      UserError: an evaluation without its rankings, or whose lists are shorter than K.
    """
    values: dict[str, dict[str, list[float]]] = {row.name: {} for row in rows}
    names = {(row.config, row.stage): row.name for row in rows}
    fitted = {row.name for row in rows if row.fitted}
    clicks: np.ndarray | None = None
    for path in workdirs:
        workdir = Workdir(path)
        key = config_key(workdir.read_config())
        for saved in workdir.read_results()["rows"]:
            name = names.get((key, saved["stage"]))
            if name is None or (saved["split"], saved["protocol"]) != (split, protocol):
                continue
            ranks = workdir.read_ranks(saved)
            measured = _of_rankings(ranks, cutoff)
            if "best" in ranks:
                clicks = _training_clicks(path) if clicks is None else clicks
                _check_lists(ranks["best"], clicks, cutoff, path)
                measured |= of_lists(ranks["best"], clicks, cutoff)
            for metric, value in measured.items():
                values[name].setdefault(metric, []).append(value)
    columns = list(dict.fromkeys(metric for of_row in values.values() for metric in of_row))
    lines = [
        f"| {protocol} | {' | '.join(columns)} |",
        "|---|" + "---:|" * len(columns),
    ]
    for name, of_row in values.items():
        cells = [
            mean_of_seeds(of_row[metric], name in fitted) if metric in of_row else ""
            for metric in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _of_rankings(ranks: dict[str, np.ndarray], cutoff: int) -> dict[str, float]:
    """Returns means over rankings; of one relevant item each, mrr alone."""
    number = np.unique(ranks["ranking"], return_inverse=True)[1]
    means = {
        name: float(values.mean())
        for name, values in measure(ranks["above"], ranks["tied"], number, cutoff).items()
    }
    if len(number) > number.max() + 1:
        return means
    return {name: value for name, value in means.items() if not name.startswith(_NONE)}


def _training_clicks(path: str) -> np.ndarray:
    data = strata.data_of(read_run_config(Workdir(path)), path)
    items = np.asarray(data.log.rec_items)[data.splits.training_rows]
    return np.bincount(items, minlength=data.log.num_items + 1)


def _check_lists(best: np.ndarray, clicks: np.ndarray, cutoff: int, path: str) -> None:
    num_items = len(clicks) - 1
    if best.size == 0 or best.max(initial=0) > num_items:
        raise UserError(
            f"expected lists of items from 1 to {num_items} in the rankings of {path}, found "
            f"{best.max(initial=0)}; run launch.evaluate --workdir={path} again"
        )
    if cutoff > best.shape[1] and best.shape[1] < num_items:
        raise UserError(
            f"expected --beyond of at most {best.shape[1]}, which the lists of {path} have, found "
            f"{cutoff}; pass such a number"
        )
