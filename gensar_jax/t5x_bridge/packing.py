"""Packs rows as `gensar_jax.packing` makes them, in place of SeqIO's packing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import seqio
import tensorflow as tf

from gensar_jax import packing
from gensar_jax.prompts import Example

# Examples whose rows are filled together: as many as a batch of the configs.
_WINDOW = 256
_SUFFIXES = ("", "_segment_ids", "_positions")


class PackingConverter(seqio.EncDecFeatureConverter):
    """Makes T5's features, rows filled by first-fit, longest prompts first.

    SeqIO fills rows in the order of the examples, which leaves more of them empty.
    """

    def _pack_or_pad(
        self, ds: tf.data.Dataset, packed_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        if not self.pack:
            return super()._pack_or_pad(ds, packed_lengths)
        widths = {name: packed_lengths[name] for name in ("inputs", "targets")}

        def pack(window):
            rows = tf.numpy_function(
                lambda inputs, targets: packed(inputs, targets, **widths),
                [window["inputs"], window["targets"]],
                [tf.int32] * (len(widths) * len(_SUFFIXES)),
                stateful=False,
            )
            columns = iter(rows)
            return {
                name + suffix: tf.ensure_shape(next(columns), [None, width])
                for name, width in widths.items()
                for suffix in _SUFFIXES
            }

        ds = ds.map(
            lambda fields: {name: fields[name][:width] for name, width in widths.items()},
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        ds = ds.padded_batch(_WINDOW, {name: [width] for name, width in widths.items()})
        return ds.map(pack, num_parallel_calls=tf.data.AUTOTUNE).unbatch()


def packed(inputs_of: np.ndarray, targets_of: np.ndarray, *, inputs: int, targets: int) -> list:
    """Rows of padded examples.

    Args:
      inputs_of, targets_of: int32 [N, T] and [N, S]; 0 is padding.
      inputs, targets: T and S.

    Returns:
      tokens, segments and positions int32 [R, T], then of targets [R, S]; segments count from 1,
      positions from 0 in each segment.
    """
    examples = [
        Example(*(row[row > 0].tolist() for row in rows))
        for rows in zip(inputs_of, targets_of, strict=True)
    ]
    batch = packing.to_packed_batch(
        examples, packing.rows_of(examples, inputs, targets), inputs, targets
    )
    # Longest prompts come first in a window; a batch is to hold rows of all kinds.
    order = np.random.default_rng(0).permutation(len(batch["encoder_input_tokens"]))
    batch = {name: rows[order] for name, rows in batch.items()}
    columns = []
    for side, tokens in (("encoder", "encoder_input_tokens"), ("decoder", "decoder_target_tokens")):
        segments = batch[f"{side}_segment_ids"]
        columns += [batch[tokens], segments, _positions(segments)]
    return columns


def _positions(segments: np.ndarray) -> np.ndarray:
    """Places within segments [R, T], 0 at padding."""
    places = np.broadcast_to(np.arange(segments.shape[1], dtype=np.int32), segments.shape)
    begins = np.diff(segments, axis=1, prepend=0) != 0
    starts = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    return np.where(segments > 0, places - starts, 0).astype(np.int32)
