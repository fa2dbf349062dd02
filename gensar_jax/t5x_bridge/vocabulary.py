"""Wraps GenSAR's tokens as a SeqIO vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import seqio
import tensorflow as tf

from gensar_jax.t5x_bridge import exported
from gensar_jax.vocabulary import END

_UNKNOWN = 2


class GenSARVocabulary(seqio.Vocabulary):
    """Joins text pieces, behaviours and codes; equal where every token is.

    Args:
      folder: of launch.export_t5x.

    Raises:
      UserError: no such folder.
    """

    def __init__(self, folder: str):
        super().__init__()
        exported.read(folder)
        self.tokens = exported.vocabulary(folder)

    @property
    def bos_id(self) -> int:
        return self.pad_id

    @property
    def eos_id(self) -> int:
        return END

    @property
    def unk_id(self) -> int:
        return _UNKNOWN

    @property
    def _base_vocab_size(self) -> int:
        return self.tokens.size

    def _encode(self, s: str) -> list[int]:
        return self.tokens.encode_text(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokens.text_of(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def encode(text):
            return np.array(self._encode(text.decode()), np.int32)

        return tf.numpy_function(encode, [s], tf.int32)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        """Texts [...] of tokens [..., S]."""

        def decode(rows):
            flat = rows.reshape(-1, rows.shape[-1])
            texts = [self._decode(row).encode() for row in flat.tolist()]
            return np.array(texts, object).reshape(rows.shape[:-1])

        return tf.numpy_function(decode, [ids], tf.string)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenSARVocabulary) and self.tokens.digest == other.tokens.digest

    def __hash__(self) -> int:
        return hash(self.tokens.digest)
