"""Puts examples of several lengths into rows of one length, so that little of them is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def first_fit(sizes: Sequence[Sequence[int]], room: Sequence[int]) -> list[list[int]]:
    """Returns which examples share a row: each goes to the first row with room for all its parts.

    Those with the longest first part go first, so that short ones fill what is left (first-fit
    decreasing); equal ones in the order given.

    Args:
      sizes: [E, P] tokens of each part of the examples, such as inputs and targets.
      room: [P] tokens of each part that a row holds.

    Returns:
      Places among the examples, a list a row.

    Raises:
      ValueError: an example that fits no row.
    """
    needed = np.array(sizes, np.int64).reshape(-1, len(room))
    for own in needed:
        if (own > room).any():
            most, found = (" and ".join(map(str, numbers)) for numbers in (room, own))
            raise ValueError(f"expected at most {most} tokens, found {found}")
    rows: list[list[int]] = []
    # Of as many rows as there are examples, of which the next one that is used is empty.
    left = np.tile(np.array(room, np.int64), (len(needed), 1))
    for place in np.argsort(-needed[:, 0], kind="stable").tolist():
        row = int((left[: len(rows) + 1] >= needed[place]).all(1).argmax())
        if row == len(rows):
            rows.append([])
        rows[row].append(place)
        left[row] -= needed[place]
    return rows
