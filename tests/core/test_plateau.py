"""Early stopping and reductions on plateau, step by step."""

import pytest

from core.plateau import Plateau


def plateau():
    return Plateau(learning_rate=1e-3, min_lr=1e-5, factor=0.1, patience=2, stop_patience=5)


def test_the_rate_falls_after_patience_and_the_stage_stops():
    p = plateau()
    values = [0.1, 0.2, 0.2, 0.19, 0.15, 0.1, 0.0]
    improved, rates, stops = [], [], []
    for value in values:
        improved.append(p.update(value))
        rates.append(p.learning_rate)
        stops.append(p.should_stop)
    assert improved == [True, True, False, False, False, False, False]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    assert stops == [False] * 6 + [True]
    assert p.best == 0.2


def test_an_improvement_starts_the_count_again():
    p = plateau()
    for value in (0.1, 0.05, 0.2, 0.1):
        p.update(value)
    assert p.learning_rate == 1e-3 and p.since_best == 1


def test_it_survives_a_checkpoint():
    p = plateau()
    p.update(0.3)
    p.update(0.1)
    assert Plateau.from_dict(p.to_dict()) == p
