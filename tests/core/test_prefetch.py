"""Values come in order, ahead of their use, and an error comes where its value would."""

import threading

import pytest

from core.prefetch import ahead


def test_values_are_made_before_they_are_asked_for_and_no_further():
    made, enough = [], threading.Event()

    def make(number):
        made.append(number)
        if number == 5 + 3:
            enough.set()
        return number

    values = ahead(make, 5, count=3, threads=1)
    assert made == []
    assert next(values) == 5
    # 6, 7 and 8 are made though nobody asks.
    assert enough.wait(timeout=30) and made == [5, 6, 7, 8]
    assert [next(values) for _ in range(4)] == [6, 7, 8, 9]
    values.close()
    assert made == list(range(5, 5 + len(made))) and len(made) <= 8


def test_several_threads_keep_the_order():
    waits = {0: threading.Event()}

    def make(number):
        if number in waits:
            assert waits[number].wait(timeout=30)
        if number == 1:
            waits[0].set()
        return number

    values = ahead(make, 0, count=2, threads=2)
    assert [next(values) for _ in range(6)] == list(range(6))


def test_an_error_comes_in_its_place():
    def make(number):
        if number == 2:
            raise ValueError("two")
        return number

    values = ahead(make, 0, count=4, threads=1)
    assert [next(values), next(values)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(values)
