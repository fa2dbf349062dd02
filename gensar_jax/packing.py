"""Packs several examples in one row, so that little of a batch is padding.

A row holds examples one after the other; segment ids keep them from seeing each other (the
network's masks), and relative positions need no correction: only differences within an example
count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gensar_jax.prompts import Example


def rows_of(examples: Sequence[Example], max_inputs: int, max_targets: int) -> list[list[int]]:
    """Tells which examples share a row: each goes to the first row with room (first-fit).

    Longest prompts first, so that short ones fill what is left; equal lengths in the order given.

    Args:
      examples: none longer than a row.
      max_inputs, max_targets: T and S of a row.

    Returns:
      Places among `examples`, a list a row.

    Raises:
      ValueError: an example that fits no row.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for place in sorted(range(len(examples)), key=lambda i: -len(examples[i].inputs)):
        inputs, targets = (len(part) for part in examples[place])
        if inputs > max_inputs or targets > max_targets:
            raise ValueError(
                f"expected at most {max_inputs} and {max_targets} tokens, found {inputs} and "
                f"{targets}"
            )
        fits = (r for r, left in enumerate(room) if inputs <= left[0] and targets <= left[1])
        row = next(fits, len(rows))
        if row == len(rows):
            rows.append([])
            room.append((max_inputs, max_targets))
        rows[row].append(place)
        room[row] = room[row][0] - inputs, room[row][1] - targets
    return rows


def to_packed_batch(
    examples: Sequence[Example], rows: Sequence[Sequence[int]], max_inputs: int, max_targets: int
) -> dict[str, np.ndarray]:
    """Rows of `rows_of` as arrays int32 [B, T] and [B, S], padded with 0.

    Returns:
      T5X's names, as of `prompts.to_batch`: each example's decoder inputs starting with 0, and
      encoder_segment_ids and decoder_segment_ids, from 1 in each row.
    """
    batch = {
        name: np.zeros((len(rows), width), np.int32)
        for names, width in (
            (("encoder_input_tokens", "encoder_segment_ids"), max_inputs),
            (
                ("decoder_input_tokens", "decoder_target_tokens", "decoder_segment_ids"),
                max_targets,
            ),
        )
        for name in names
    }
    for row, places in enumerate(rows):
        start, target_start = 0, 0
        for segment, place in enumerate(places, 1):
            inputs, targets = examples[place]
            end, target_end = start + len(inputs), target_start + len(targets)
            batch["encoder_input_tokens"][row, start:end] = inputs
            batch["encoder_segment_ids"][row, start:end] = segment
            batch["decoder_input_tokens"][row, target_start + 1 : target_end] = targets[:-1]
            batch["decoder_target_tokens"][row, target_start:target_end] = targets
            batch["decoder_segment_ids"][row, target_start:target_end] = segment
            start, target_start = end, target_end
    return batch
