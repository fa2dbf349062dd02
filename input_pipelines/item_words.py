"""Gives each item the words of the training searches that led to it.

They serve the control without search histories whose items carry the searches' words (on Amazon
Beauty, where a query is the category path of a bought item, its category).
"""

from __future__ import annotations

import numpy as np

from input_pipelines.log import Log
from input_pipelines.search_task import training_searches
from input_pipelines.splits import Splits


def item_words(log: Log, splits: Splits, most: int) -> np.ndarray:
    """Returns the `most` most frequent words of the training searches that led to each item.

    Returns:
      Word ids int32 [V+1, most], most frequent first, equal ones by id; 0 beyond an item's words
      and for items that no training search led to.
    """
    searches = training_searches(log, splits)
    offsets = np.asarray(log.word_offsets)
    lengths = (offsets[1:] - offsets[:-1])[searches.target_row]
    owners = np.repeat(searches.item.astype(np.int64), lengths)
    # Word k of the clicks laid end to end is word k - start of its search.
    starts = np.repeat(offsets[searches.target_row] - (np.cumsum(lengths) - lengths), lengths)
    words = np.asarray(log.word_ids)[starts + np.arange(lengths.sum())]
    pairs, counts = np.unique(owners * (log.num_words + 1) + words, return_counts=True)
    items, words = np.divmod(pairs, log.num_words + 1)
    order = np.lexsort((words, -counts, items))
    items, words = items[order], words[order]
    places = np.arange(len(items)) - np.searchsorted(items, items)
    out = np.zeros((log.num_items + 1, most), np.int32)
    frequent = places < most
    out[items[frequent], places[frequent]] = words[frequent]
    return out
