"""Tests whether two methods differ, with the seeds of training and the users as random factors.

A test over the users of trained networks answers whether these networks differ. Another seed gives
other networks, and two runs of one method differ too. So the seed is a random factor here, nested
in its method: seed 0 of one network has nothing in common with seed 0 of another. Users are a
second random factor, crossed with methods and seeds:

    y[m, s, u] = mean[m] + user[u] + interaction[m, u] + seed[m, s] + residual[m, s, u]

Its components are estimated by the analysis of variance (every user is ranked by every run, so the
design is balanced), each method with a variance of seeds of its own, and the difference of two
means has Student's t with Satterthwaite's degrees of freedom (Satterthwaite 1946), as in Welch's
test. Where users do not matter it is Welch's test over the means of seeds; where seeds do not
matter, as between popularity and item-kNN, it is the paired t-test over users. Mixed models by
likelihood judge their estimates by the normal distribution, which is far too sure of three seeds.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import scipy.special
import scipy.stats


@dataclasses.dataclass(frozen=True)
class MethodTest:
    """Compares two methods, second minus first.

    Attributes:
      difference: of the means over users and all seeds of each.
      low, high: the 95% interval of the difference.
      p: of no difference, two-sided.
      p_holm: after Holm's correction over the pairs that were tested.
      degrees: of freedom; infinite where nothing but equal numbers was seen.
      effect: the difference in deviations over seeds (`hedges_g`); None where that has no value.
      seeds: how many of the first and of the second; 1 of a method that is fitted.
    """

    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    degrees: float
    effect: float | None
    seeds: tuple[int, int]


def compare_methods(
    first: np.ndarray, second: np.ndarray, fitted: tuple[bool, bool] = (False, False)
) -> MethodTest | None:
    """Returns the test of two methods; None where the runs cannot tell methods apart.

    Args:
      first, second: the metric [S, U] of every seed and user; S may differ, users are the same.
      fitted: whether a method is fitted without chance, so that one run is all of them.

    Returns:
      The test, with `p` as `p_holm`. None: a method that is trained has one seed, or there is one
      user.
    """
    groups = [np.asarray(values, np.float64) for values in (first, second)]
    for place, values in enumerate(groups):
        if fitted[place] and (values == values[0]).all():
            groups[place] = values[:1]
        elif len(values) < 2:
            return None
    if groups[0].shape[1] < 2:
        return None
    # Variances of the difference, with their degrees of freedom.
    parts = [_of_seeds(values) for values in groups]
    users = groups[0].shape[1]
    by_user = groups[1].mean(0) - groups[0].mean(0)
    # What the residuals add to the spread of users' differences, the means of seeds have already.
    interaction = (by_user.var(ddof=1) - sum(_residual(values) for values in groups)) / users
    parts.append((max(0.0, float(interaction)), users - 1))
    variance = sum(part for part, _ in parts)
    difference = float(by_user.mean())
    # Means of equal numbers differ by rounding.
    scale = max(float(np.abs(values).max()) for values in groups)
    if variance <= (1e-12 * scale) ** 2:
        equal = abs(difference) <= 1e-12 * scale
        degrees, half, p = math.inf, 0.0, 1.0 if equal else 0.0
    else:
        degrees = variance**2 / sum(part**2 / free for part, free in parts if part > 0)
        error = math.sqrt(variance)
        half = float(scipy.special.stdtrit(degrees, 0.975)) * error
        p = float(2 * scipy.stats.t.sf(abs(difference) / error, degrees))
    return MethodTest(
        difference=difference,
        low=difference - half,
        high=difference + half,
        p=p,
        p_holm=p,
        degrees=degrees,
        effect=hedges_g(*(values.mean(1) for values in groups)),
        seeds=(len(groups[0]), len(groups[1])),
    )


def _of_seeds(values: np.ndarray) -> tuple[float, int]:
    """Returns the variance of a method's mean over seeds, and its degrees of freedom."""
    if len(values) < 2:
        return 0.0, 1
    return float(values.mean(1).var(ddof=1)) / len(values), len(values) - 1


def _residual(values: np.ndarray) -> float:
    """Returns the variance that residuals give to a user's mean over the seeds of a method."""
    seeds, users = values.shape
    if seeds < 2:
        return 0.0
    residuals = values - values.mean(0) - values.mean(1)[:, None] + values.mean()
    return float(np.square(residuals).sum()) / ((seeds - 1) * (users - 1)) / seeds


def hedges_g(first: np.ndarray, second: np.ndarray) -> float | None:
    """Returns the difference of means in deviations, unbiased (Hedges 1981), second minus first.

    Args:
      first, second: a mean a seed, [S]; a group of one has no deviation of its own.

    Returns:
      None where the deviation is 0, or has one degree of freedom, of which nothing is unbiased.
    """
    free = len(first) + len(second) - 2
    squares = sum(float(np.square(group - group.mean()).sum()) for group in (first, second))
    if free < 2 or squares <= 1e-24:
        return None
    correction = math.exp(math.lgamma(free / 2) - math.lgamma((free - 1) / 2)) / math.sqrt(free / 2)
    return float(correction * (second.mean() - first.mean()) / math.sqrt(squares / free))
