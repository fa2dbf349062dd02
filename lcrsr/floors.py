"""Measures what a trained model must beat: popularity and item-kNN, fitted to the same clicks."""

from __future__ import annotations

import logging

import numpy as np

from core import metrics
from input_pipelines.dataset import Dataset
from lcrsr.baselines import item_knn, popularity
from lcrsr.baselines.fitted import Fitted, FittedEvaluator

_LOG = logging.getLogger(__name__)
# What validation chose on Amazon Beauty, as in configs/item_knn.py.
_NEIGHBOURS = item_knn.Settings(decay=0.6, history_power=0.5)
# Above these the similarities of item-kNN, or its scores of a batch, take gigabytes: pairs of
# clicks of one user, and items.
_MOST_PAIRS, _MOST_ITEMS = 2e8, 200_000


def floors(data: Dataset, selection: str) -> dict[str, float]:
    """Returns the selection metric of popularity and of item-kNN on validation, by name.

    Item-kNN is left out where it would take gigabytes.

    Args:
      selection: such as 'ndcg@5/neg99'.
    """
    clicks = data.training_clicks()
    scorers: dict[str, Fitted] = {
        "popularity": popularity.fit(popularity.Settings(), clicks),
    }
    pairs = np.square(np.diff(clicks.indptr).astype(np.float64)).sum()
    if pairs > _MOST_PAIRS or data.log.num_items > _MOST_ITEMS:
        _LOG.info("validation is not compared with item-kNN, which would take gigabytes here")
    else:
        scorers["item-kNN"] = item_knn.fit(_NEIGHBOURS, clicks)
    name, _, protocol = selection.partition("/")
    values = {}
    for scorer_name, scorer in scorers.items():
        evaluator = FittedEvaluator(scorer, (name,))
        if protocol == "full":
            sums: metrics.Sums = evaluator.full(None, None, data.full("validation"))
        else:
            sums = evaluator.sampled(None, None, data.sampled("validation", protocol))
        values[scorer_name] = float(sums.means()[name])
    return values
