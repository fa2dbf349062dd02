"""UnifiedSSR: windows and correlation by hand, and what each branch sees."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from announced_batches import SIZES, batch_of, task_of

from lcrsr.baselines import unified_ssr
from lcrsr.baselines.two_histories import QUIET
from lcrsr.embedding import init_tables, look_up

SETTINGS = unified_ssr.Settings(
    width=8,
    inner=8,
    layers=2,
    heads=2,
    sessions=2,
    dropout=0.0,
    init_scale=0.5,
    user_scale=0.1,
    correlation_weight=0.1,
    loss="bce",
    search_weight=1.0,
)


@functools.cache
def made():
    ranker = unified_ssr.ranker(SETTINGS)
    tables = init_tables(jax.random.key(0), width=8, scale=0.5, **SIZES)
    batch = batch_of(np.random.default_rng(0), 8)
    return ranker, ranker.init(jax.random.key(1), batch, look_up(tables, batch)), tables


@jax.jit
def encoded(params, tables, batch):
    return made()[0].represent(params, batch, look_up(tables, batch))


def test_windows_are_those_of_the_release():
    inside = unified_ssr.windows(jnp.array([8, 4, 1]), 8, 2)
    # S 2, n 8: [1, 3] and [5, 7]; n 4: 1 +- .5 and 3 +- .5.
    assert np.flatnonzero(inside[0, 0]).tolist() == [1, 2, 3]
    assert np.flatnonzero(inside[0, 1]).tolist() == [5, 6, 7]
    assert np.flatnonzero(inside[1, 0]).tolist() == [1]
    assert np.flatnonzero(inside[1, 1]).tolist() == [3]
    assert not inside[2].any()


def test_the_correlation_loss_by_hand():
    items = jnp.array([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]]])
    queries = jnp.array([[[0.0, 1.0], [0.0, -1.0]], [[3.0, 0.0], [0.0, 1.0]]])
    np.testing.assert_allclose(unified_ssr.correlation(items, None), [1.0, 0.0], atol=1e-5)
    # Of the first user: 1 of P, |-1| of Q, and no cosine between them; of the second 0 + 0 - 1.
    np.testing.assert_allclose(unified_ssr.correlation(items, queries), [2.0, -1.0], atol=1e-5)
    means = unified_ssr.window_means(jnp.arange(8.0).reshape(1, 4, 2), jnp.ones((1, 1, 4), bool))
    np.testing.assert_allclose(means, [[[3.0, 4.0]]])


def test_a_state_sees_nothing_that_follows_in_either_input():
    network, params = made()[0].network, made()[1]
    keys = jax.random.split(jax.random.key(0), 2)
    x, other = (jax.random.normal(key, (1, 5, 8)) for key in keys)
    valid = jnp.array([[True] * 4 + [False]])
    branch = jax.jit(
        lambda *rows: network.apply({"params": params}, *rows, valid, QUIET, method="branch")
    )
    before = branch(x, other)
    for changed in ((x.at[:, 2].multiply(-1.0), other), (x, other.at[:, 2].multiply(-1.0))):
        after = branch(*changed)
        np.testing.assert_array_equal(before[:, :2], after[:, :2])
        assert np.abs(before[:, 2:4] - after[:, 2:4]).max(-1).min() > 1e-3
    # Padding is seen by nobody before it.
    after = branch(x.at[:, 4].multiply(-1.0), other.at[:, 4].multiply(-1.0))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])


def test_each_branch_reads_its_own_history_and_the_user():
    _, params, tables = made()
    batch = batch_of(np.random.default_rng(3), 8)
    batch["clicked_items"][:, 0] = 5
    asked = {"query": np.full((8, 2), 3, np.int32)}

    def moves(**changes):
        """Whether the users of both tasks move, recommendation first."""
        other = {name: value.copy() for name, value in batch.items()}
        for name, (place, value) in changes.items():
            other[name][(slice(None), *place)] = value
        both = [
            [encoded(params, tables, each | question) for each in (batch, other)]
            for question in ({}, asked)
        ]
        return [bool(np.abs(before - after).max() > 1e-5) for before, after in both]

    assert moves(rec_items=((0,), 9)) == [True, False]
    assert moves(query_words=((0, 0), 17)) == [False, True]
    assert moves(clicked_items=((0, 0), 9)) == [False, True]
    assert moves(user=((), 3)) == [True, True]


def test_users_start_at_a_deviation_of_their_own():
    tables = task_of(made()[0]).init()["tables"]
    # Its 4 users and the row of all others; row 0 is padding.
    for name, scale in (("user", 0.1), ("item", 0.5), ("word", 0.5)):
        assert np.std(tables[name][1:]) == pytest.approx(scale, rel=0.25), name


def test_the_share_of_the_two_branches_is_kept_between_its_ends():
    _, params, tables = made()
    batch = batch_of(np.random.default_rng(3), 8) | {"query": np.full((8, 2), 3, np.int32)}
    each = {
        share: np.asarray(encoded(params | {"share": jnp.float32(share)}, tables, batch))
        for share in (-3.0, 0.1, 0.5, 0.9, 7.0)
    }
    np.testing.assert_array_equal(each[-3.0], each[0.1])
    np.testing.assert_array_equal(each[7.0], each[0.9])
    np.testing.assert_allclose(each[0.5], (each[0.1] + each[0.9]) / 2, atol=1e-5)
    assert np.abs(each[0.1] - each[0.9]).max() > 1e-3
