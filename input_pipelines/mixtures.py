"""Mixes tasks: says which example of which task stands at each position of an endless stream.

As in SeqIO a task has a rate; here it is a number of examples an epoch, and every epoch has exactly
these, in a random order. What stands where is a pure function of (seed, position), so that the
place in the data is one integer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from core.errors import UserError
from input_pipelines import random_streams

# Added to the seed for the phrasing, far from other seeds.
_PHRASING_SEED = 3_000_017
ALL = -1


class Positions(NamedTuple):
    """Says what stands at positions [n]; each field is int64 [n].

    Attributes:
      task: place among the mixture's tasks.
      example: in [0, size) of the task.
      phrasing: in [0, phrasings).
    """

    task: np.ndarray
    example: np.ndarray
    phrasing: np.ndarray


def check_rates(rates: Mapping[str, int]) -> None:
    """Checks the rates of a `Mixture` as far as that needs no sizes of its tasks.

    Raises:
      UserError: a rate below -1, or nothing to train on.
    """
    for name, rate in rates.items():
        if rate < ALL:
            raise UserError(
                f"expected config.mixture.{name} of examples an epoch, 0 for none or -1 for all, "
                f"found {rate}; correct it"
            )
    if not any(rates.values()):
        raise UserError(
            "expected a mixture of at least one task, found a rate of 0 for every one; raise one "
            "of config.mixture"
        )


class Mixture:
    """Mixes the examples of several tasks at given rates.

    Args:
      sizes: examples that each task has.
      rates: examples of each task an epoch: `ALL` takes every one once, 0 leaves the task out, and
        a rate above the task's size takes all. A task's examples come once before any comes again.
      phrasings: of each task; drawn anew for every position.

    Raises:
      UserError: an unknown task, a task with a rate and no example, or as `check_rates`.
    """

    def __init__(
        self, sizes: Mapping[str, int], rates: Mapping[str, int], *, phrasings: int, seed: int
    ):
        check_rates(rates)
        for name, rate in rates.items():
            if name not in sizes:
                raise UserError(
                    f"expected tasks of {', '.join(sizes)} in the mixture, found {name!r}; correct "
                    "the name"
                )
            if rate and not sizes[name]:
                raise UserError(
                    f"expected training examples of {name}, found none in the data; set "
                    f"--config.mixture.{name}=0"
                )
        self.counts = {
            name: sizes[name] if rate == ALL else min(rate, sizes[name])
            for name, rate in rates.items()
            if rate
        }
        self.tasks = tuple(self.counts)
        self._sizes = [sizes[name] for name in self.tasks]
        self._ends = np.cumsum(list(self.counts.values()))
        self._phrasings, self._seed = phrasings, seed

    @property
    def examples_per_epoch(self) -> int:
        return int(self._ends[-1])

    def at(self, position: np.ndarray) -> Positions:
        """Returns what stands at these positions [n], int64."""
        position = np.asarray(position, np.int64)
        total = self.examples_per_epoch
        epoch, place = np.divmod(position, total)
        slot = random_streams.permutation(total, random_streams.keys(self._seed, epoch), place)
        task = np.searchsorted(self._ends, slot, side="right")
        example = np.zeros_like(position)
        for number, (name, size) in enumerate(zip(self.tasks, self._sizes, strict=True)):
            own = task == number
            count = self.counts[name]
            # The task's own stream goes on from epoch to epoch.
            drawn = epoch[own] * count + slot[own] - (self._ends[number] - count)
            lap, rest = np.divmod(drawn, size)
            keys = random_streams.keys(self._seed, number + 1, lap)
            example[own] = random_streams.permutation(size, keys, rest)
        keys = random_streams.keys(self._seed + _PHRASING_SEED, position)
        phrasing = random_streams.below(keys, 1, self._phrasings)[:, 0]
        return Positions(task, example, phrasing)
