"""Tells which items and words occur together in training: with one user, or in one search."""

from __future__ import annotations

import numpy as np
import scipy.sparse

from input_pipelines.log import Log
from input_pipelines.search_task import training_searches
from input_pipelines.splits import Splits


def of_searches(log: Log, splits: Splits) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """Returns what each training search with words and clicks holds.

    Returns:
      Its clicked items float32 [S, V+1] and its words float32 [S, W+1], each 1 where it occurs.
    """
    examples = training_searches(log, splits)
    searches, of_click = np.unique(examples.target_row, return_inverse=True)
    offsets = np.asarray(log.word_offsets)
    lengths = (offsets[1:] - offsets[:-1])[searches]
    # Word k of the searches laid end to end is word k - start of its search.
    starts = np.repeat(offsets[searches] - (np.cumsum(lengths) - lengths), lengths)
    words = np.asarray(log.word_ids)[starts + np.arange(lengths.sum())]
    of_word = np.repeat(np.arange(len(searches)), lengths)
    return (
        _occurring(of_click, examples.item, (len(searches), log.num_items + 1)),
        _occurring(of_word, words, (len(searches), log.num_words + 1)),
    )


def _occurring(
    rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]
) -> scipy.sparse.csr_array:
    ones = np.ones(len(rows), np.float32)
    counts = scipy.sparse.csr_array((ones, (rows, columns)), shape=shape)
    counts.sum_duplicates()
    return counts.sign()
