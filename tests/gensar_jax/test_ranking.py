"""Ranks of targets in what a beam found, by hand."""

import jax.numpy as jnp
import numpy as np

from core.beam_search import Beams
from gensar_jax.ranking import MISSED, ranks_of


def beams_of(items, scores):
    items = jnp.asarray(items, jnp.int32)
    return Beams(items, jnp.asarray(scores, jnp.float32), jnp.zeros((*items.shape, 2), jnp.int32))


def test_ranks_by_hand():
    beams = beams_of(
        [[5, 7, 2, 9], [5, 7, 2, 9], [5, 7, 2, 9], [5, 7, -1, -1], [5, 7, 2, 9]],
        [
            [-1.0, -2.0, -3.0, -4.0],
            [-1.0, -2.0, -3.0, -4.0],
            [-1.0, -2.0, -2.0, -2.0],
            [-1.0, -2.0, -jnp.inf, -jnp.inf],
            [-1.0, jnp.nan, -3.0, -4.0],
        ],
    )
    target = jnp.array([2, 8, 2, 7, 5])
    removed = jnp.array([[7, 0, 4], [0, 0, 0], [5, 0, 0], [0, 0, 0], [0, 0, 0]])
    ranks = ranks_of(beams, target, removed)
    # 5 alone is above 2 once 7 is removed; 8 was dropped by the beam; 7 and 9 tie with 2, and 5 is
    # removed; leftover places are no items.
    assert ranks.above.tolist()[:4] == [1, MISSED, 0, 1]
    assert ranks.tied.tolist()[:4] == [0, 0, 2, 0]
    assert ranks.broken.tolist() == [False] * 4 + [True]


def test_a_target_among_the_removed_still_counts():
    beams = beams_of([[5, 7]], [[-1.0, -2.0]])
    ranks = ranks_of(beams, jnp.array([7]), jnp.array([[7, 5]]))
    assert np.asarray(ranks.above).tolist() == [0]
