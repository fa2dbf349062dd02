"""Compares rows of runs by tests that are paired over users."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import scipy.stats

from core import metrics
from core.errors import UserError

_RESAMPLES = 2000
# Below this number of users Student's t replaces the bootstrap, which sees too few values.
_FEWEST_RESAMPLED = 30
# BCa leaves every user out once, in time of their square (0.4 s of 10,000). Beyond, its corrections
# are smaller than what the draws of the bootstrap leave open, and percentiles take its place.
_MOST_CORRECTED = 10_000
# Resampled values held at once: 8 MB, and as much for their places.
_HELD = 2**20


@dataclasses.dataclass(frozen=True)
class Row:
    """Holds the results of one method after one stage.

    Attributes:
      name: with the stage where a method has several, and what sets it apart from its like.
      seeds, means: of its runs; a mean is over the examples.
      values: the metric [S, E] of every seed's run, in the order of `seeds`.
      users: of the examples, [E]; a user may have several.
      method, stage: that it is of.
      config: what tells its config from the configs of other rows.
    """

    name: str
    seeds: tuple[int, ...]
    means: tuple[float, ...]
    values: np.ndarray
    users: np.ndarray
    method: str = ""
    stage: str = ""
    config: str = ""

    @property
    def per_example(self) -> np.ndarray:
        """Returns the metric of every example float64 [E], averaged over the runs."""
        return self.values.mean(0, dtype=np.float64)

    def per_user(
        self, chosen: np.ndarray | slice = slice(None), seeds: Sequence[int] | None = None
    ) -> np.ndarray:
        """Returns means [U] over every user's examples, all or those chosen by a bool [E].

        Args:
          seeds: whose runs are averaged; None for all.
        """
        places = [self.seeds.index(seed) for seed in (self.seeds if seeds is None else seeds)]
        values = self.values[places].mean(0, dtype=np.float64)
        return metrics.means_of_users(values[chosen], self.users[chosen])


@dataclasses.dataclass(frozen=True)
class Pair:
    """Compares two rows, second minus first: mean difference, 95% interval, t-test p, Holm's p.

    Attributes:
      seeds: that both rows have, over which both were averaged.
      left_out: seeds that only one of them has.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    seeds: tuple[int, ...]
    left_out: tuple[int, ...]


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p after Holm's step-down correction, in the order of `p_values`."""
    order = np.argsort(p_values)
    corrected = np.zeros(len(p_values))
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected.tolist()


def compare_pairs(rows: Sequence[Row], seed: int = 0, *, against_first: bool = False) -> list[Pair]:
    """Returns every pair of rows, paired over users; or each of the others with the first alone.

    Both of a pair are averaged over the seeds that both have.

    Raises:
      UserError: two rows have no seed in common, or other users.
    """
    rng = np.random.default_rng(seed)
    tests = []
    pairs = itertools.combinations(rows, 2)
    for first, second in itertools.product(rows[:1], rows[1:]) if against_first else pairs:
        seeds = shared_seeds(first, second)
        if not np.array_equal(first.users, second.users):
            raise UserError(
                f"expected the same test users of {first.name} and {second.name}, found others; "
                "evaluate both with the same eval settings"
            )
        differences = second.per_user(seeds=seeds) - first.per_user(seeds=seeds)
        low, high = _interval(differences, rng)
        p = float(scipy.stats.ttest_1samp(differences, 0.0).pvalue)
        # Users who never differ have no variance to test.
        p = 1.0 if np.isnan(p) else p
        tests.append((first, second, differences.mean(), low, high, p, seeds))
    corrected = holm([p for *_, p, _ in tests])
    return [
        Pair(
            *(a.name, b.name, float(d), float(low), float(high), p, p_holm, seeds),
            tuple(sorted({*a.seeds, *b.seeds} - {*seeds})),
        )
        for (a, b, d, low, high, p, seeds), p_holm in zip(tests, corrected, strict=True)
    ]


def shared_seeds(first: Row, second: Row) -> tuple[int, ...]:
    """Returns the seeds that both rows have, in order.

    Raises:
      UserError: there is none.
    """
    seeds = tuple(sorted({*first.seeds} & {*second.seeds}))
    if not seeds:
        raise UserError(
            f"expected runs with a seed in common, found {listed(first.seeds)} of {first.name} "
            f"and {listed(second.seeds)} of {second.name}; train them with the same seeds, or "
            "compare each alone"
        )
    return seeds


def _interval(differences: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Returns the 95% interval of the mean of every user's difference, [U].

    Student's t of few users; else the bootstrap, bias-corrected and accelerated (Efron 1987), or by
    percentiles of very many.
    """
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return -math.inf, math.inf
    if n < _FEWEST_RESAMPLED:
        half = metrics.half_interval(differences)
        return mean - half, mean + half
    # BCa has no answer for differences that are equal up to rounding.
    if np.allclose(differences, mean, rtol=1e-9, atol=0.0):
        return mean, mean
    low, high = scipy.stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=max(1, _HELD // n),
        method="BCa" if n <= _MOST_CORRECTED else "percentile",
        rng=rng,
    ).confidence_interval
    return float(low), float(high)


def listed(seeds: Sequence[int]) -> str:
    """Returns 'seed 0' or 'seeds 0, 1'."""
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))


def examples_and_users(row: Row) -> str:
    """Returns a sentence on what means and what tests are over."""
    examples, users = len(row.users), len(np.unique(row.users))
    return (
        f"Means are over {examples:,} examples, differences and their tests over the means of "
        f"{users:,} users."
    )
