"""Compare two scorings of the same test examples: the change, its interval, its p value, and what it allows to say.

Answers to the same examples are paired, so their difference is known far better than two scores on their own: only the
examples whose score changed carry noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from merganser.errors import InputError
from merganser.settings import CONFIDENCE

RESAMPLES = 2000
"""Of scores that are not just right or wrong."""

POWER = 0.8
"""Chance with which :func:`examples_needed` tests would tell a change from the allowed one, and a study would detect
its minimum detectable difference."""


@dataclass(frozen=True)
class PairedChange:
    """The change of the mean score over the same test examples.

    Attributes:
        n: examples.
        before, after: mean scores, in [0, 1].
        change: ``after - before``.
        low, high: limits of its two-sided interval.
        p: two-sided p value of no change.
        lost, gained: examples whose score fell, and rose.
        deviation: standard deviation of the differences, over the examples.
        right_or_wrong: whether all scores are 0 or 1.
    """

    n: int
    before: float
    after: float
    change: float
    low: float
    high: float
    p: float
    lost: int
    gained: int
    deviation: float
    right_or_wrong: bool


def paired_change(
    before: Sequence[float], after: Sequence[float], confidence: float = CONFIDENCE, seed: int = 0
) -> PairedChange:
    """Compare the scores of the same examples in the same order.

    Right and wrong answers (scores of 0 and 1 only): Tango's score interval of a difference of paired proportions, and
    McNemar's exact test. Other scores: percentile interval of the mean difference by the bootstrap over the examples,
    and the permutation test that exchanges before and after of an example.

    Args:
        before, after: one score in [0, 1] per example.
        confidence: coverage of the interval, in (0, 1).
        seed: of the resamples.

    Raises:
        InputError: no examples, different numbers of them, or a number outside its range.

    Source: Tango 1998; McNemar 1947 (exact: Fay 2010); Efron and Tibshirani 1993.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.size == 0 or first.shape != second.shape:
        raise InputError(
            f"Scores of {first.size} and of {second.size} examples cannot be paired.", "Score the same examples twice."
        )
    if not all(np.isfinite(part).all() and (part >= 0).all() and (part <= 1).all() for part in (first, second)):
        raise InputError("A score is not in [0, 1].", "Give fractions, not percent.")
    if not 0.0 < confidence < 1.0:
        raise InputError(f"Confidence {confidence} is not between 0 and 1.", "Write 95 percent as 0.95.")
    differences = second - first
    n, lost, gained = differences.size, int((differences < 0).sum()), int((differences > 0).sum())
    right_or_wrong = bool(np.isin(np.concatenate([first, second]), (0.0, 1.0)).all())
    if right_or_wrong or not differences.any():
        low, high = tango_interval(lost, gained, n, confidence)
        p = mcnemar_p(lost, gained)
    else:
        low, high = _bootstrap(differences, confidence, seed)
        p = _exchange_p(differences, seed)
    return PairedChange(
        n=n,
        before=float(first.mean()),
        after=float(second.mean()),
        change=float(differences.mean()),
        low=low,
        high=high,
        p=p,
        lost=lost,
        gained=gained,
        deviation=float(differences.std()),
        right_or_wrong=right_or_wrong or not differences.any(),
    )


def mcnemar_p(lost: int, gained: int) -> float:
    """Return the two-sided p value of McNemar's exact test: each changed answer is lost or gained with equal chance."""
    from scipy.special import bdtr

    changed = lost + gained
    return 1.0 if changed == 0 else min(1.0, 2.0 * float(bdtr(min(lost, gained), changed, 0.5)))


def tango_interval(lost: int, gained: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Compute Tango's score interval of the change of a proportion over the same examples.

    It holds its coverage for few examples and few changes, and has a width even where nothing changed.

    Args:
        lost, gained: examples that became wrong, and right.
        n: all examples.
        confidence: coverage, in (0, 1).

    Source: Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", equations 19 to 22.
    """
    from scipy.optimize import brentq

    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    change = (gained - lost) / n

    def statistic(delta: float) -> float:
        return tango_statistic(lost, gained, n, delta)

    def limit(edge: float, level: float) -> float:
        inside = change - 1e-12 if edge < 0 else change + 1e-12
        if abs(edge - change) < 1e-9 or abs(statistic(edge * (1.0 - 1e-12))) < z:
            return edge
        return float(brentq(lambda delta: _finite(statistic(delta)) - level, edge * (1.0 - 1e-12), inside, xtol=1e-9))

    return limit(-1.0, z), limit(1.0, -z)


def tango_statistic(lost: int, gained: int, n: int, delta: float) -> float:
    """Return the standardised distance of the observed change from ``delta``, with the variance that ``delta`` implies.

    Approximately standard normal if ``delta`` is the true change; see :func:`tango_interval`.
    """
    a = 2.0 * n
    b = -lost - gained + (2 * n - gained + lost) * delta
    c = -lost * delta * (1.0 - delta)
    share = (math.sqrt(max(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a)
    variance = n * (2.0 * share + delta * (1.0 - delta))
    distance = gained - lost - n * delta
    if variance <= 0.0:
        return 0.0 if distance == 0.0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _finite(value: float) -> float:
    return max(-1e9, min(1e9, value))


def _bootstrap(differences: NDArray[np.float64], confidence: float, seed: int) -> tuple[float, float]:
    """Return the limits of the mean difference, by resampling the examples."""
    rng, n = np.random.default_rng(seed), differences.size
    means = np.concatenate([differences[rng.integers(0, n, size=(size, n))].mean(axis=1) for size in _portions()])
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def _exchange_p(differences: NDArray[np.float64], seed: int) -> float:
    """Return the two-sided p value of no change: before and after of each example exchanged at random.

    Unlike the bootstrap's, it is exact for few examples.
    """
    rng, n = np.random.default_rng(seed), differences.size
    sums = np.concatenate([(2 * rng.integers(0, 2, size=(size, n)) - 1) @ differences for size in _portions()])
    extreme = int((np.abs(sums) >= abs(differences.sum()) - 1e-9).sum())
    return (1 + extreme) / (1 + RESAMPLES)


def _portions(most: int = 100) -> list[int]:
    """Divide the resamples: a test set may have 100,000 examples."""
    return [min(most, RESAMPLES - start) for start in range(0, RESAMPLES, most)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for their number, so that the chance of any false finding stays below the level.

    Source: Holm 1979.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def noise_floor(change: PairedChange, confidence: float = CONFIDENCE) -> float:
    """Return the smallest change that could be told from none, with as many examples that vary as much as these."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    return min(1.0, z * math.sqrt(_variance(change) / change.n))


def examples_needed(change: PairedChange, allowed: float, confidence: float = CONFIDENCE) -> int | None:
    """Return about how many test examples would tell whether the loss exceeds what is allowed, with 80 % power.

    ``None`` where the observed change is exactly the allowed one, so that no number would do.

    Args:
        allowed: largest loss, a fraction (0.02: two points).
        confidence: of the one-sided decision.
    """
    distance = change.change + allowed
    if distance == 0.0:
        return None
    normal = NormalDist()
    z = normal.inv_cdf(confidence) + normal.inv_cdf(POWER)
    return max(change.n + 1, math.ceil(_variance(change) * (z / distance) ** 2))


def _variance(change: PairedChange) -> float:
    """Return the variance of a difference; where nothing differed, as if one example had become right or wrong."""
    return change.deviation**2 or 1.0 / change.n
