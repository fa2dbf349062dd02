"""Examples share rows by first-fit."""

import numpy as np
import pytest

from core.packing import first_fit


def one_by_one(sizes, room):
    """Follows the definition: for each example, the longest first, look at row after row."""
    rows, left = [], []
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place][0]):
        fits = (
            row
            for row, free in enumerate(left)
            if all(size <= space for size, space in zip(sizes[place], free))
        )
        row = next(fits, len(rows))
        if row == len(rows):
            rows.append([])
            left.append(list(room))
        rows[row].append(place)
        left[row] = [space - size for space, size in zip(left[row], sizes[place])]
    return rows


def test_each_example_goes_to_the_first_row_with_room():
    assert first_fit([[3], [5], [2], [3], [1]], [6]) == [[1, 4], [0, 3], [2]]
    # The second part of the first row has no room for another 3.
    assert first_fit([[2, 3], [3, 1], [1, 1], [1, 3]], [8, 4]) == [[1, 0], [2, 3]]
    assert first_fit([], [4, 4]) == []


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_rows_are_those_of_the_definition(parts):
    rng = np.random.default_rng(parts)
    for count in (1, 7, 200):
        sizes = rng.integers(0, 21, (count, parts)).tolist()
        rows = first_fit(sizes, [20] * parts)
        assert rows == one_by_one(sizes, [20] * parts)
        assert sorted(place for row in rows for place in row) == list(range(count))


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="at most 8 and 4 tokens, found 2 and 5"):
        first_fit([[1, 1], [2, 5]], [8, 4])
