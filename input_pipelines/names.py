"""Keeps names of users, items, words and places as UTF-8 laid end to end, without padding.

An array of NumPy's text type gives every row the width of the longest one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

# Names decoded at a time where all are gone through.
_CHUNK = 100_000
_NEWLINE = 10


class Names:
    """Reads names by number where they lie; number 0 is padding and has the name ''.

    `names[3]` is one name; a slice or an array of numbers gives an object array of them, and
    `np.asarray(names)` all of them.

    Args:
      offsets: int64 [n+2], for n names.
      flat: uint8; name i is the UTF-8 in flat[offsets[i]:offsets[i+1]].
    """

    def __init__(self, offsets: np.ndarray, flat: np.ndarray):
        self.offsets, self.flat = offsets, flat

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Lays out the names of the numbers 1, 2, ..."""
        return cls(*lay_out(names))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, number: int) -> str: ...

    @overload
    def __getitem__(self, number: slice | np.ndarray | Sequence[int]) -> np.ndarray: ...

    def __getitem__(self, number: Any) -> str | np.ndarray:
        if isinstance(number, slice):
            return self._take(np.arange(len(self))[number])
        if np.ndim(number):
            return self._take(np.arange(len(self))[np.asarray(number)])
        # The range refuses what is out of bounds and counts negative numbers from the end.
        return self._at(range(len(self))[number])

    def _at(self, number: int) -> str:
        first, last = self.offsets[number : number + 2].tolist()
        return self.flat[first:last].tobytes().decode()

    def _take(self, numbers: np.ndarray) -> np.ndarray:
        names = np.empty(numbers.shape, object)
        names.reshape(-1)[:] = [self._at(number) for number in numbers.reshape(-1).tolist()]
        return names

    def __iter__(self) -> Iterator[str]:
        return self.decoded()

    def decoded(self, chunk: int = _CHUNK) -> Iterator[str]:
        """Yields all names in order, decoding `chunk` of them at a time."""
        for start in range(0, len(self), chunk):
            ends = np.asarray(self.offsets[start : start + chunk + 1])
            part = np.asarray(self.flat[ends[0] : ends[-1]]).tobytes()
            for first, last in itertools.pairwise((ends - ends[0]).tolist()):
                yield part[first:last].decode()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        names = np.empty(len(self), object)
        names[:] = list(self)
        return names if dtype is None else names.astype(dtype)

    def index(self, name: str) -> int:
        """Returns the first number of a name. Raises ValueError where there is none."""
        return list(self).index(name)

    def tolist(self) -> list[str]:
        """Returns all names, '' of number 0 among them."""
        return list(self)

    def lines(self, chunk: int = _CHUNK) -> Iterator[bytes]:
        """Yields the UTF-8 of all names with newlines between them, `chunk` names at a time."""
        for start in range(0, len(self), chunk):
            ends = np.asarray(self.offsets[start : start + chunk + 1])
            part = np.asarray(self.flat[ends[0] : ends[-1]])
            joined = np.insert(part, ends[1:-1] - ends[0], _NEWLINE).tobytes()
            yield b"\n" * (start > 0) + joined


def lay_out(names: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (offsets int64 [n+2], UTF-8 uint8) of the texts of the numbers 1..n."""
    encoded = [name.encode() for name in names]
    ends = np.cumsum([0, 0, *map(len, encoded)], dtype=np.int64)
    return ends, np.frombuffer(b"".join(encoded), np.uint8)


def lay_out_numbers(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns `lay_out` of integers from 0 as decimal text, int64 [n], without a loop."""
    width = len(str(values.max(initial=0)))
    digits = values.astype(f"S{width}").view(np.uint8).reshape(len(values), width)
    filled = digits != 0
    ends = np.concatenate([[0, 0], np.cumsum(filled.sum(1))]).astype(np.int64)
    return ends, digits[filled]
