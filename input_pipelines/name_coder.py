"""Numbers names that come in blocks, in the order of their characters, without a Python object."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Distinct names of blocks that wait until they are merged: a merge costs a table of all names.
_LEAST_WAITING = 1_000_000


class NameCoder:
    """Gives every distinct name one code, from 0 in the order in which names come.

    Attributes:
      names: the names of the codes that have been merged.
    """

    def __init__(self) -> None:
        self.names: pa.LargeStringArray = pa.array([], pa.large_string())
        self._waiting: list[tuple[pa.LargeStringArray, list[np.ndarray]]] = []
        self._count = 0

    def add(self, names: pa.LargeStringArray, *codes: np.ndarray) -> None:
        """Takes the names of a block, none twice; `codes`, int32, name them by their places.

        The codes are changed in place to those of all blocks, at the latest by `merge`.
        """
        self._waiting.append((names, list(codes)))
        self._count += len(names)
        if self._count > max(_LEAST_WAITING, len(self.names)):
            self.merge()

    def merge(self) -> None:
        """Gives the codes of all blocks so far their last values."""
        if not self._waiting:
            return
        parts = [self.names, *(names for names, _ in self._waiting)]
        encoded = pa.chunked_array(parts).combine_chunks().dictionary_encode()
        places = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32)
        start = len(self.names)
        for names, codes in self._waiting:
            own = places[start : start + len(names)]
            for each in codes:
                each[:] = own[each]
            start += len(names)
        self.names, self._waiting, self._count = encoded.dictionary, [], 0

    def ranked(self, used: np.ndarray) -> tuple[pa.LargeStringArray, np.ndarray]:
        """Returns (the names that are used, in order; int32 [n], the number of each code, from 1).

        Args:
          used: bool [n], which codes count; the number of another is 0.
        """
        order = pc.array_sort_indices(self.names).to_numpy(zero_copy_only=False)
        order = order[used[order]]
        numbers = np.zeros(len(self.names), np.int32)
        numbers[order] = np.arange(1, len(order) + 1, dtype=np.int32)
        return self.names.take(pa.array(order)), numbers
