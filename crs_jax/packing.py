"""Prompts with their answers as rows of tokens, several in one row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Rows of a batch come in multiples of this, so that few shapes are compiled.
ROW_MULTIPLE = 8


class Example(NamedTuple):
    """Holds token ids; the loss is on the answer."""

    prompt: Sequence[int]
    answer: Sequence[int]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)


def rows_of(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Tells which examples share a row of `width` tokens: longest first, each to the first with
    room.

    Raises:
      ValueError: an example longer than a row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[place]
        if length > width:
            raise ValueError(f"expected examples of at most {width} tokens, found {length}")
        row = next((r for r, left in enumerate(room) if length <= left), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(place)
        room[row] -= length
    return rows


def packed(
    examples: Sequence[Example], width: int, least_rows: int = 0, row_multiple: int = ROW_MULTIPLE
) -> dict[str, np.ndarray]:
    """Packs a batch into rows [R, T], R a multiple of `row_multiple` of at least `least_rows`.

    Returns:
      tokens int32; segments int32, the example of each token of a row, from 1, 0 for padding;
      positions int32, from 0 in each example; answers bool, the tokens that are predicted.
    """
    rows = rows_of([example.length for example in examples], width)
    count = -(-max(len(rows), least_rows) // row_multiple) * row_multiple
    batch = {
        name: np.zeros((count, width), np.int32) for name in ("tokens", "segments", "positions")
    }
    batch["answers"] = np.zeros((count, width), bool)
    for row, places in enumerate(rows):
        start = 0
        for segment, place in enumerate(places, 1):
            prompt, answer = examples[place]
            end, stop = start + len(prompt), start + examples[place].length
            batch["tokens"][row, start:end] = prompt
            batch["tokens"][row, end:stop] = answer
            batch["segments"][row, start:stop] = segment
            batch["positions"][row, start:stop] = np.arange(stop - start)
            batch["answers"][row, end:stop] = True
            start = stop
    return batch


def prompt_array(prompts: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens int32 [E, T] padded with 0, lengths int32 [E]) of prompts of at most
    `width`.
    """
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    return tokens, np.array([len(prompt) for prompt in prompts], np.int32)
