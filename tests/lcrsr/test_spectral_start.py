"""Rows that start where the training log puts them. Axes: U users, V items, W words, D width."""

import jax
import numpy as np
import pytest
import scipy.sparse

from core.partitioning import Partition, make_mesh
from lcrsr.embedding import PARTITION_RULES, init_tables, with_rows
from lcrsr.spectral_start import spectral_rows

# Two groups of items that no user and no search joins: 1 to 4 with word 1, 5 to 8 with word 2.
ITEMS, WORDS, WIDTH = 9, 3, 4


def clicks():
    rng = np.random.default_rng(0)
    counts = np.zeros((41, ITEMS + 1))
    for user in range(1, 41):
        first = 1 if user % 2 else 5
        counts[user, rng.choice(np.arange(first, first + 4), 3, replace=False)] = 1.0
    counts[1, 2] = 5.0
    return scipy.sparse.csr_array(counts)


def searches():
    items, words = np.zeros((4, ITEMS + 1), np.float32), np.zeros((4, WORDS + 1), np.float32)
    items[[0, 1, 2, 3], [1, 2, 5, 6]] = 1.0
    words[[0, 1, 2, 3], [1, 1, 2, 2]] = 1.0
    return scipy.sparse.csr_array(items), scipy.sparse.csr_array(words)


def rows(**changes):
    return spectral_rows(
        clicks(), searches(), **({"width": WIDTH, "scale": 0.1, "popularity_weight": 0.0} | changes)
    )


def test_what_occurs_together_starts_near():
    tables = rows()
    vectors = np.concatenate([tables["item"][1:9], tables["word"][1:3]])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = unit @ unit.T
    group = np.array([0, 0, 0, 0, 1, 1, 1, 1, 0, 1])
    same = group[:, None] == group
    assert near[same].mean() > 0.5 > abs(near[~same]).max() * 5
    assert vectors.std() == pytest.approx(0.1, rel=1e-5)


def test_rows_that_nothing_is_known_of_stay_as_drawn():
    tables = rows()
    for table, unknown in ((tables["item"], [0, 9]), (tables["word"], [0, 3])):
        assert np.isnan(table).all(1).nonzero()[0].tolist() == unknown
        assert np.isfinite(np.delete(table, unknown, 0)).all()


def test_users_start_among_the_items_they_clicked():
    assert "user" not in rows()
    tables = rows(users=True)
    users, items = tables["user"], tables["item"][1:9]
    assert users.shape == (41, WIDTH) and np.isnan(users[0]).all()
    assert users[1:].std() == pytest.approx(0.1, rel=1e-5)
    near = users[1:] @ items.T
    first = np.arange(1, 41) % 2 == 1
    assert (near[first][:, :4].mean(1) > near[first][:, 4:].mean(1)).all()
    assert (near[~first][:, 4:].mean(1) > near[~first][:, :4].mean(1)).all()


def test_the_first_coordinate_is_the_logarithm_of_clicks():
    tables = rows(popularity_weight=10.0)
    logs = np.log1p(np.asarray(clicks().sum(0)).ravel()[1:])
    biases = 10.0 * tables["item"][1:, 0]
    np.testing.assert_allclose(biases - biases[0], logs - logs[0], atol=1e-5)
    assert (tables["word"][1:3, 0] == 0.0).all()


def test_a_log_smaller_than_the_width_and_one_without_searches():
    nothing = scipy.sparse.csr_array((0, ITEMS + 1)), scipy.sparse.csr_array((0, 1))
    tables = spectral_rows(clicks(), nothing, width=32, scale=0.1, popularity_weight=10.0)
    assert tables["item"].shape == (ITEMS + 1, 32) and tables["word"].shape == (1, 32)
    assert np.isfinite(tables["item"][1:9]).all()


@pytest.mark.parametrize("shape", [None, (1, 4), (2, 2)])
def test_tables_take_the_rows_wherever_they_lie(shape):
    partition = shape and Partition(make_mesh(*shape), PARTITION_RULES, WIDTH)
    sizes = {"num_users": 2, "num_items": ITEMS, "num_words": WORDS}
    drawn = init_tables(jax.random.key(0), width=WIDTH, scale=1.0, partition=partition, **sizes)
    table, sharding = drawn["item"], None
    if partition:
        sharding = partition.shardings({"tables": drawn})["tables"]["item"]
        table = jax.device_put(table, sharding)
    wanted = rows()["item"]
    found = with_rows(table, wanted, sharding)
    assert found.sharding == table.sharding and found.shape == table.shape
    found, before = (np.asarray(x).reshape(-1, WIDTH)[: ITEMS + 1] for x in (found, table))
    np.testing.assert_array_equal(found, np.where(np.isnan(wanted), before, wanted))
