"""Statistics of a mean over runs, or of a mean difference: standard error, interval, test, and what could be detected.

Two things vary when a method is tried again: the *run* (seed and order of the tasks), and the *test examples*, which
are the same in all runs. Both are resampled (a hierarchical bootstrap): runs as units, and for each task its examples.

**Few runs.** A bootstrap over n units is too narrow by about the factor ``sqrt((n - 1) / n)``, and its percentiles are
those of a normal where Student's t is needed. Deviations of the runs are widened by both factors (the expanded
percentile interval of Hesterberg 2015), so that five seeds give an interval that covers as often as it promises.

**Clustered runs.** Runs of one order may be alike, and so may runs of one seed. Runs, orders with all their runs, or
seeds with all of theirs are the units, whichever gives the largest standard error.

**Counted once.** The mean over runs varies between examples also by the noise of single answers, which the spread of
the runs has already. The part of the examples is scaled to what the examples themselves contribute (analysis of
variance of runs and examples), so that this noise is not counted twice.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from merganser.errors import InputError
from merganser.metrics.paired import POWER
from merganser.settings import CONFIDENCE

Array = NDArray[np.float64]

RESAMPLES = 4000
LEAST_SCORE, LEAST_CHANGE = 0.0, -1.0
"""The least that a score can be, and a difference of two scores, or a change (BWT, FWT); the most is 1 for both."""

ALIKE = 0.25
"""Level of the analysis of variance at which the runs of one order, or seed, count as alike: there are then only as
many degrees of freedom as orders, or seeds, less one. A strict level would miss most effects, since the orders are few.

Source: Bancroft 1964, "Analysis and inference for incompletely specified models involving the use of preliminary
test(s) of significance"."""

LEAST = 1e-15
"""Smallest tail of a distribution that is told apart from none."""

ROUNDING = 1e-12
"""Standard error of scores in [0, 1] below which their runs are equal."""

MOST_CELLS = 1 << 20
"""Numbers of a portion of the resamples of test examples, of which a task may have 100,000."""


@dataclass(frozen=True)
class Block:
    """Scores, or differences of scores, of the same test examples in several runs.

    Attributes:
        scores: shape ``[runs, examples]``.
        weight: of their mean in the overall mean.
    """

    scores: Array
    weight: float


@dataclass(frozen=True)
class Sample:
    """One number per run, such as OP or a difference of OP.

    Attributes:
        values: one per run.
        orders, seeds: of each run.
        blocks: the test examples that it was computed from; none: they were not kept, or are not to vary.
        one_run: whether all are of one run, or differences to one, so that they do not show how another would be.
    """

    values: Array
    orders: Sequence[Hashable]
    seeds: Sequence[Hashable]
    blocks: Sequence[Block] = ()
    one_run: bool = False

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or not self.values.size or not np.isfinite(self.values).all():
            raise InputError("The values of the runs are not finite numbers.", "Leave out runs that have no result.")
        if not len(self.orders) == len(self.seeds) == self.values.size:
            raise InputError("The runs have other numbers of orders and seeds.", "Give one of each per run.")

    @property
    def shows_spread(self) -> bool:
        """Whether there are several runs, which show how much another could differ."""
        return self.values.size > 1 and not self.one_run


@dataclass(frozen=True)
class Estimate:
    """A mean over runs.

    Attributes:
        runs: how many.
        mean: over them.
        stderr: its standard error; ``None``: of one run, unless its test examples were kept.
        low, high: limits of its interval; ``None``: likewise.
        p: two-sided p value of a true mean of zero; ``None``: of one run, from which no spread can be measured.
        permutation_p: of the permutation test, and at most ``p``; ``None``: there are so few runs that it could decide
            nothing.
        detectable: smallest true value that would be told from zero with 80 % power; ``None``: of one run.
        units: what varied the most, and was resampled: ``runs``, ``orders`` or ``seeds``.
    """

    runs: int
    mean: float
    stderr: float | None
    low: float | None
    high: float | None
    p: float | None = None
    permutation_p: float | None = None
    detectable: float | None = None
    units: str = "runs"

    def within(self, lowest: float, highest: float = 1.0) -> Estimate:
        """Return it as it is shown: with limits no further than the metric itself can go.

        An interval of few runs is wide and does not know the range. Nothing is computed from what this returns.
        """
        if self.low is None or self.high is None:
            return self
        return replace(self, low=max(self.low, lowest), high=min(self.high, highest))


def estimate(sample: Sample, confidence: float = CONFIDENCE, comparisons: int = 0, seed: int = 0) -> Estimate:
    """Estimate a mean over runs, and of differences test whether it is zero.

    The p value is the larger one of two tests, which must agree. The permutation test exchanges the two methods of a
    run, in every way or in many random ones; it assumes nothing about the spread, and takes the test examples and the
    orders as given. Student's t test has the standard error of the hierarchical bootstrap, in which they vary. Where
    there are so few runs that not even differences of one sign could reach the level, the permutation test can decide
    nothing and is left out.

    Args:
        sample: the runs.
        confidence: coverage of the interval, in (0, 1).
        comparisons: number of methods that are compared at once; 0: zero means nothing, and is not tested. What is
            detectable, and whether the permutation test could decide anything, is by the level of the strictest step of
            Holm's correction.
        seed: of the resamples.

    Raises:
        InputError: a confidence outside (0, 1).

    Source: Fisher 1935 and Pitman 1937 (permutations); Cochran and Cox 1950 (quantiles).
    """
    if not 0.0 < confidence < 1.0:
        raise InputError(f"Confidence {confidence} is not between 0 and 1.", "Write 95 percent as 0.95.")
    runs, mean, level = sample.values.size, float(sample.values.mean()), (1.0 - confidence) / max(1, comparisons)
    parts = [_example_part(block) for block in sample.blocks]
    spread = _run_spread(sample)
    if spread is None and not parts:
        return Estimate(runs, mean, None, None, None)
    rng = np.random.default_rng(seed)
    draws = np.full(RESAMPLES, mean)
    for part in parts:
        draws += part.draw(rng)
    if spread is not None:
        draws += spread.widening(confidence) * spread.draw(rng, mean)
    low, high = (float(limit) for limit in np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2]))
    stderr = math.sqrt(math.fsum(part.variance for part in parts) + (spread.variance if spread else 0.0))
    if spread is None or not comparisons:
        return Estimate(runs, mean, stderr, low, high, units="runs" if spread is None else spread.units)
    quantiles = _quantiles(spread, parts)
    least = 2.0 ** (1 - runs)  # of permutations: as many runs all of one sign
    p = 2.0 * quantiles.tail(abs(mean) / stderr) if stderr > 0 else least if mean else 1.0
    permutation_p = _permutation_p(sample.values, level) if least <= level else None
    detectable = min(1.0, (quantiles.above(level / 2) + quantiles.above(1.0 - POWER)) * stderr) if stderr else 0.0
    return Estimate(
        runs, mean, stderr, low, high, max(p, permutation_p or 0.0), permutation_p, detectable, spread.units
    )


def _permutation_p(values: Array, level: float) -> float:
    from scipy import stats

    result = stats.permutation_test(
        (values,),
        lambda values, axis: np.mean(values, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=max(9999, math.ceil(20 / level)),
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


@dataclass(frozen=True)
class _Quantiles:
    """Quantiles of a mean / its standard error, whose variance is a sum: means of Student's, weighted by variance.

    With two or three runs, degrees of freedom after Satterthwaite find more differences than they should.

    Source: Cochran and Cox 1950, "Experimental Designs".
    """

    variances: Array
    freedoms: Array

    def above(self, tail: float) -> float:
        """Return the quantile that has ``tail`` of the distribution above it."""
        from scipy.special import stdtrit

        return float(-(self.variances @ stdtrit(self.freedoms, tail)) / self.variances.sum())

    def tail(self, distance: float) -> float:
        """Return how much of the distribution lies above ``distance``, which is not negative; at least 1e-15."""
        from scipy.optimize import brentq

        if distance >= self.above(LEAST):
            return LEAST
        return math.exp(brentq(lambda log: self.above(math.exp(log)) - distance, math.log(LEAST), math.log(0.5)))


def _quantiles(spread: _Spread, parts: Sequence[_ExamplePart]) -> _Quantiles:
    terms = [(spread.variance, spread.freedom)]
    terms += [(part.variance, int(part.counts.sum()) - 1) for part in parts if part.variance > 0]
    variances, freedoms = np.array(terms, dtype=np.float64).T
    return _Quantiles(variances, freedoms)


# Runs ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Spread:
    """How the mean varies with the runs.

    Attributes:
        units: that vary the most: ``runs``, ``orders`` or ``seeds``.
        clusters: values of each unit.
        variance: of the mean over all values if whole units are drawn (a ratio estimate).
        freedom: degrees of freedom of the variance.
    """

    units: str
    clusters: list[Array]
    variance: float
    freedom: int

    def draw(self, rng: np.random.Generator, mean: float) -> Array:
        """Draw deviations of the mean, by resampling the units."""
        number = len(self.clusters)
        sums = np.array([cluster.sum() for cluster in self.clusters])
        sizes = np.array([cluster.size for cluster in self.clusters])
        chosen = rng.integers(0, number, size=(RESAMPLES, number))
        return np.asarray(sums[chosen].sum(axis=1) / sizes[chosen].sum(axis=1) - mean)

    def widening(self, confidence: float) -> float:
        """Return the factor by which deviations of so few resampled units are too small for their percentiles."""
        from scipy import stats

        number, level = len(self.clusters), 0.5 + confidence / 2
        quantiles = float(stats.t.ppf(level, self.freedom)) / float(stats.norm.ppf(level))
        return math.sqrt(number / (number - 1)) * quantiles


def _run_spread(sample: Sample) -> _Spread | None:
    """Return the spread over runs, orders or seeds, whichever is largest; ``None`` of one run."""
    runs = sample.values.size
    if not sample.shows_spread:
        return None
    spreads = [_spread("runs", [sample.values[[place]] for place in range(runs)])]
    for units, labels in (("orders", sample.orders), ("seeds", sample.seeds)):
        places: dict[Hashable, list[int]] = {}
        for place, label in enumerate(labels):
            places.setdefault(label, []).append(place)
        if 1 < len(places) < runs:
            spreads.append(_spread(units, [sample.values[of_label] for of_label in places.values()]))
    return max(spreads, key=lambda spread: spread.variance)  # of equal ones the first: runs


def _spread(units: str, clusters: list[Array]) -> _Spread:
    from scipy import stats

    number, total = len(clusters), sum(cluster.size for cluster in clusters)
    mean = math.fsum(float(cluster.sum()) for cluster in clusters) / total
    squares = math.fsum((float(cluster.sum()) - cluster.size * mean) ** 2 for cluster in clusters)
    variance, freedom = squares * number / (number - 1) / total**2, total - 1
    if variance < ROUNDING**2:
        variance = 0.0
    if number < total:
        between = math.fsum(cluster.size * (float(cluster.mean()) - mean) ** 2 for cluster in clusters)
        within = math.fsum(float(((cluster - cluster.mean()) ** 2).sum()) for cluster in clusters)
        ratio = between / (number - 1) / max(within / (total - number), 1e-300)
        if stats.f.sf(ratio, number - 1, total - number) <= ALIKE:
            freedom = number - 1
    return _Spread(units, clusters, variance, freedom)


# Test examples -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ExamplePart:
    """How the mean varies with the test examples of one task.

    Attributes:
        means: of each example over the runs; equal ones once.
        counts: how often each of them is there.
        factor: of a deviation of their mean in the overall mean.
        variance: of the overall mean.
    """

    means: Array
    counts: NDArray[np.int64]
    factor: float
    variance: float

    def draw(self, rng: np.random.Generator) -> Array:
        """Draw deviations of the overall mean, by resampling the examples."""
        if self.factor == 0.0:
            return np.zeros(RESAMPLES)
        number = int(self.counts.sum())
        shares = self.counts / number
        centre = float(shares @ self.means)
        drawn = [rng.multinomial(number, shares, size=size) @ self.means for size in _portions(self.means.size)]
        return self.factor * (np.concatenate(drawn) / number - centre)


def _portions(width: int) -> Iterator[int]:
    most = max(1, MOST_CELLS // max(1, width))
    for start in range(0, RESAMPLES, most):
        yield min(most, RESAMPLES - start)


def _example_part(block: Block) -> _ExamplePart:
    scores = block.scores
    runs, number = scores.shape
    means = scores.mean(axis=0)
    values, counts = np.unique(means, return_counts=True)
    if number < 2:
        return _ExamplePart(values, counts, 0.0, 0.0)
    variance = float(means.var(ddof=1))
    noise = 0.0
    if runs > 1:
        residuals = scores - means - scores.mean(axis=1, keepdims=True) + scores.mean()
        noise = float((residuals**2).sum()) / ((runs - 1) * (number - 1)) / runs
    of_examples = max(0.0, variance - noise)
    shrink = math.sqrt(of_examples / variance) if variance > 0 else 0.0
    return _ExamplePart(values, counts, block.weight * shrink, block.weight**2 * of_examples / number)


# Costs ---------------------------------------------------------------------------------------------------------------


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Return the places of the points that no other one beats: none costs less and scores as well, or costs as much and
    scores better; by cost.
    """
    order = sorted(range(len(costs)), key=lambda place: (costs[place], -scores[place]))
    front: list[int] = []
    for place in order:
        if not front or scores[place] > scores[front[-1]]:
            front.append(place)
    return front


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean of values that are all there; ``None`` if one is missing, or there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None
