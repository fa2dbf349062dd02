"""Reads an array whose rows lie in several files, each of which is opened when it is first read."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np


class ShardedArray:
    """Looks up rows of a one-dimensional array that is cut into shards.

    It can be indexed with a row, a slice, rows of any shape and a mask, and turned into a whole
    array, which copies it. Rows do not count back from the end, except one alone and slices.

    Args:
      starts: int64 [n+1]; shard i holds the rows from starts[i] to starts[i+1] - 1.
      dtype: of all shards.
      open_shard: i -> the array of shard i; called once for each, when its rows are first read.
    """

    ndim = 1

    def __init__(
        self, starts: Sequence[int], dtype: np.dtype, open_shard: Callable[[int], np.ndarray]
    ):
        self._starts = [int(start) for start in starts]
        self._firsts = np.array(self._starts[:-1], np.int64)
        self._open_shard = open_shard
        self._opened: dict[int, np.ndarray] = {}
        self.dtype = np.dtype(dtype)
        self.shape = (self._starts[-1],)
        self.size = self._starts[-1]

    def __len__(self) -> int:
        return self.size

    @property
    def opened(self) -> list[int]:
        """Lists the shards that have been opened so far."""
        return sorted(self._opened)

    def _shard(self, number: int) -> np.ndarray:
        try:
            return self._opened[number]
        except KeyError:
            # Two threads may both open it, which harms nobody.
            self._opened[number] = self._open_shard(number)
            return self._opened[number]

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            return self._slice(*rows.indices(self.size))
        if isinstance(rows, (int, np.integer)):
            row = int(rows) + self.size * (rows < 0)
            if not 0 <= row < self.size:
                raise IndexError(f"row {rows} of {self.size}")
            number = bisect.bisect_right(self._starts, row) - 1
            return self._shard(number)[row - self._starts[number]]
        rows = np.asarray(rows)
        if rows.dtype == bool:
            if rows.shape != self.shape:
                raise IndexError(f"a mask of shape {rows.shape} over {self.size} rows")
            rows = np.flatnonzero(rows)
        blocks = rows.reshape(len(rows), -1) if rows.ndim > 1 and rows.size else rows.reshape(-1, 1)
        return self._blocks(blocks).reshape(rows.shape)

    def _slice(self, first: int, stop: int, step: int) -> np.ndarray:
        if step != 1:
            return self._blocks(np.arange(first, stop, step)[:, None])[:, 0]
        parts, row = [], first
        while row < stop:
            number = bisect.bisect_right(self._starts, row) - 1
            start, end = self._starts[number : number + 2]
            parts.append(self._shard(number)[row - start : min(stop, end) - start])
            row = end
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.zeros(0, self.dtype)

    def _blocks(self, rows: np.ndarray) -> np.ndarray:
        """Returns the values of rows [n, m]; those of one block [m] usually lie in one shard."""
        values = np.empty(rows.shape, self.dtype)
        if not rows.size:
            return values
        first, last = rows.min(1), rows.max(1)
        if first.min() < 0 or last.max() >= self.size:
            raise IndexError(f"rows {first.min()} to {last.max()} of {self.size}")
        shards = self._shards_of(first)
        if rows.shape[1] > 1:
            together = shards == self._shards_of(last)
            if not together.all():
                values[together] = self._blocks(rows[together])
                apart = rows[~together]
                values[~together] = self._blocks(apart.reshape(-1, 1)).reshape(apart.shape)
                return values
        order = np.argsort(shards, kind="stable")
        counts = np.bincount(shards)
        begin = 0
        for number in np.flatnonzero(counts).tolist():
            some = order[begin : begin + counts[number]]
            values[some] = self._shard(number)[rows[some] - self._starts[number]]
            begin += counts[number]
        return values

    def _shards_of(self, rows: np.ndarray) -> np.ndarray:
        # Of at most 16 bits where shards are few, which NumPy sorts by radix.
        kind = np.min_scalar_type(len(self._firsts))
        return (np.searchsorted(self._firsts, rows, side="right") - 1).astype(kind)

    def parts(self) -> Iterator[np.ndarray]:
        """Yields the rows of each shard, in their order."""
        for number in range(len(self._firsts)):
            yield self._shard(number)

    def min(self) -> Any:
        """Returns the least value. Raises ValueError where there is none."""
        return min(part.min() for part in self.parts() if len(part))

    def max(self) -> Any:
        """Returns the greatest value. Raises ValueError where there is none."""
        return max(part.max() for part in self.parts() if len(part))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("the rows of several shards are one array in a copy alone")
        whole = np.concatenate([np.zeros(0, self.dtype), *self.parts()])
        return whole if dtype is None else whole.astype(dtype, copy=False)
