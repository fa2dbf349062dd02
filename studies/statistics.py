"""Compares rows of runs: of methods, with seeds at random, and of these checkpoints, over users."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import scipy.stats

from core import metrics
from core.errors import UserError
from core.stages import FITTED
from studies.method_tests import MethodTest, compare_methods

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

    def per_seed(self, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Returns every seed's means [S, U] over every user's examples, as `per_user`."""
        return np.stack([self.per_user(chosen, [seed]) for seed in self.seeds])

    @property
    def fitted(self) -> bool:
        """Tells whether the method is fitted without chance, so that its seeds are alike."""
        return self.stage == FITTED


@dataclasses.dataclass(frozen=True)
class Pair:
    """Compares two rows, second minus first.

    Attributes:
      difference, low, high, p, p_holm: of these checkpoints: the mean difference of users, its 95%
        interval, the p of the paired t-test over users, and that after Holm's correction.
      effect: the difference in deviations of the users' differences (Cohen's d_z); None where all
        users differ alike, or there is one.
      seeds: that both rows have, over which both were averaged.
      left_out: seeds that only one of them has.
      of_methods: the test of the methods, over all seeds of each; None where the runs cannot tell
        methods apart, as with one seed.
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
    effect: float | None = None
    of_methods: MethodTest | None = None


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p after Holm's step-down correction, in the order of `p_values`."""
    order = np.argsort(p_values)
    corrected = np.zeros(len(p_values))
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected.tolist()


def p_text(p: float) -> str:
    """Returns a p as tables print it: two digits, or '<1e-4' for what is below it.

    So small a p rests on the tails of a distribution that the data only nearly have.
    """
    return "<1e-4" if p < 1e-4 else f"{p:.2g}"


def effect_text(effect: float | None) -> str:
    """Returns an effect in deviations as tables print it: two digits, '' for None.

    Beyond 10 either way it is '>10' or '<-10': deviations of three seeds, which it is divided by,
    are themselves known to a factor of several.
    """
    if effect is None:
        return ""
    if abs(effect) > 10:
        return ">10" if effect > 0 else "<-10"
    return f"{effect:+.2g}"


def compare_pairs(rows: Sequence[Row], seed: int = 0, *, against_first: bool = False) -> list[Pair]:
    """Returns every pair of rows; or each of the others with the first alone.

    The test of these checkpoints is paired over users, both averaged over the seeds that both have;
    the test of methods is over all seeds (`studies.method_tests`). Each is corrected by Holm's
    method over the pairs that have it.

    Raises:
      UserError: two rows have no seed in common, or other users.
    """
    rng = np.random.default_rng(seed)
    by_seed = [row.per_seed() for row in rows]
    tests: list[Pair] = []
    places = list(range(len(rows)))
    pairs = itertools.combinations(places, 2)
    for first, second in itertools.product(places[:1], places[1:]) if against_first else pairs:
        a, b = rows[first], rows[second]
        seeds = shared_seeds(a, b)
        if not np.array_equal(a.users, b.users):
            raise UserError(
                f"expected the same test users of {a.name} and {b.name}, found others; "
                "evaluate both with the same eval settings"
            )
        differences = b.per_user(seeds=seeds) - a.per_user(seeds=seeds)
        low, high = _interval(differences, rng)
        p = p_of_gains(differences)
        tests.append(
            Pair(
                first=a.name,
                second=b.name,
                difference=float(differences.mean()),
                low=float(low),
                high=float(high),
                p=p,
                p_holm=p,
                seeds=seeds,
                left_out=tuple(sorted({*a.seeds, *b.seeds} - {*seeds})),
                effect=_effect(differences),
                of_methods=compare_methods(by_seed[first], by_seed[second], (a.fitted, b.fitted)),
            )
        )
    return corrected(tests)


def p_of_gains(gains: np.ndarray) -> float:
    """Returns the p of the t-test that the mean of one gain a user, [U], is 0."""
    p = float(scipy.stats.ttest_1samp(gains, 0.0).pvalue)
    # Users who never differ have no variance to test.
    return 1.0 if np.isnan(p) else p


def corrected(pairs: Sequence[Pair]) -> list[Pair]:
    """Returns pairs with both tests corrected by Holm's method over all of them."""
    of_checkpoints = holm([pair.p for pair in pairs])
    tested = [place for place, pair in enumerate(pairs) if pair.of_methods is not None]
    of_methods = holm([test.p for pair in pairs if (test := pair.of_methods) is not None])
    by_place = dict(zip(tested, of_methods, strict=True))
    return [
        dataclasses.replace(
            pair,
            p_holm=of_checkpoints[place],
            of_methods=pair.of_methods
            and dataclasses.replace(pair.of_methods, p_holm=by_place[place]),
        )
        for place, pair in enumerate(pairs)
    ]


def _effect(differences: np.ndarray) -> float | None:
    """Returns Cohen's d_z of every user's difference, [U]; None where they have no spread."""
    if len(differences) < 2 or np.allclose(differences, differences[0], rtol=1e-9, atol=0.0):
        return None
    return float(differences.mean() / differences.std(ddof=1))


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
