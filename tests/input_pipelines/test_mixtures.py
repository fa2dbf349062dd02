"""Mixtures of tasks: rates, laps, and that a position alone says what stands there."""

import collections

import numpy as np
import pytest

from core.errors import UserError
from input_pipelines.mixtures import ALL, Mixture

SIZES = {"a": 7, "b": 10, "c": 3, "d": 0}
RATES = {"a": ALL, "b": 4, "c": 100, "d": 0}


def test_every_epoch_has_exactly_the_rates():
    mixture = Mixture(SIZES, RATES, phrasings=5, seed=0)
    # All 7 of a, 4 of b, and of c the 3 that there are.
    assert mixture.counts == {"a": 7, "b": 4, "c": 3} and mixture.examples_per_epoch == 14
    orders = set()
    for epoch in range(6):
        positions = mixture.at(np.arange(14 * epoch, 14 * (epoch + 1)))
        assert np.bincount(positions.task).tolist() == [7, 4, 3]
        assert sorted(positions.example[positions.task == 0].tolist()) == list(range(7))
        assert sorted(positions.example[positions.task == 2].tolist()) == list(range(3))
        orders.add(tuple(positions.task.tolist()))
    assert len(orders) == 6


def test_a_task_shows_every_example_once_before_any_again():
    mixture = Mixture(SIZES, RATES, phrasings=5, seed=1)
    # 4 of b's 10 an epoch: 5 epochs are two laps.
    positions = mixture.at(np.arange(14 * 5))
    assert collections.Counter(positions.example[positions.task == 1].tolist()) == dict.fromkeys(
        range(10), 2
    )


def test_positions_are_a_pure_function_of_the_seed():
    one, other = (Mixture(SIZES, RATES, phrasings=5, seed=s) for s in (0, 1))
    whole = one.at(np.arange(50))
    for place in (0, 13, 14, 49):
        alone = one.at(np.array([place]))
        assert [int(part[0]) for part in alone] == [int(part[place]) for part in whole]
    assert whole.task.tolist() != other.at(np.arange(50)).task.tolist()


def test_phrasings_are_drawn_evenly_and_anew():
    positions = Mixture({"a": 3}, {"a": ALL}, phrasings=5, seed=0).at(np.arange(5000))
    counts = np.bincount(positions.phrasing)
    assert len(counts) == 5 and counts.min() > 900 and counts.max() < 1100


@pytest.mark.parametrize(
    "sizes, rates, message",
    [
        (SIZES, RATES | {"nrap": 5}, "expected tasks of a, b, c, d in the mixture, found 'nrap'"),
        (SIZES, {"a": -2}, r"config.mixture.a of examples an epoch, .* found -2"),
        (SIZES, {"d": ALL}, "expected training examples of d, found none"),
        (SIZES, dict.fromkeys(SIZES, 0), "at least one task"),
    ],
)
def test_mistakes(sizes, rates, message):
    with pytest.raises(UserError, match=message):
        Mixture(sizes, rates, phrasings=5, seed=0)
