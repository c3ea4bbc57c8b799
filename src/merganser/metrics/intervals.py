"""Intervals for tables: of one score over its test examples, and of a mean over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from merganser.errors import InputError
from merganser.settings import CONFIDENCE


def wilson_interval(value: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Compute Wilson's score interval of a proportion.

    Stays within [0, 1] and keeps a width at scores of 0 and 1, where ``value +- z * stderr`` collapses to a point. For
    scores between 0 and 1 per example (ROUGE-L, F1) it is conservative, because their variance is at most
    ``value (1 - value)``.

    Args:
        value: fraction of correct answers (or mean score), in [0, 1].
        n: number of test examples.
        confidence: coverage, in (0, 1).

    Returns:
        Lower and upper limit.

    Raises:
        InputError: a number outside its range.

    Source: Wilson 1927; recommended for small n by Brown, Cai and DasGupta 2001.
    """
    _check_confidence(confidence)
    if not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise InputError(f"Score {value} is not in [0, 1].", "Give a fraction, not percent.")
    if n < 1:
        raise InputError(f"The interval is over {n} test examples.", "It needs at least one.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    shrink = 1.0 + z * z / n
    centre = (value + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(value * (1.0 - value) / n + z * z / (4 * n * n))
    # At a score of 0 (1) the limit is 0 (1) exactly; rounding would put it a hair beside.
    low = 0.0 if value == 0.0 else max(0.0, centre - half)
    high = 1.0 if value == 1.0 else min(1.0, centre + half)
    return low, high


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float | None]:
    """Compute the mean over independent runs (seeds) and the half-width of its Student-t interval.

    To compare two methods run with the same seeds, give the differences seed by seed: they share data order and
    initialisation, so their differences vary less than the values.

    Args:
        values: one number per seed.
        confidence: coverage, in (0, 1).

    Returns:
        Mean and half-width ``t(n - 1) * s / sqrt(n)`` with the sample deviation ``s``; the half-width is ``None`` for a
        single seed, from which no spread can be measured.

    Raises:
        InputError: no values, a value that is not finite, or a confidence outside (0, 1).
    """
    _check_confidence(confidence)
    array = np.asarray(list(values), dtype=np.float64)
    if array.size == 0:
        raise InputError("There are no seeds to average over.", "Give at least one value.")
    if not np.isfinite(array).all():
        raise InputError(f"The values {array.tolist()} are not all finite.", "Leave out runs that have no result.")
    mean = float(array.mean())
    if array.size == 1:
        return mean, None
    from scipy.stats import t  # takes about a second to import

    quantile = float(t.ppf(0.5 + confidence / 2, array.size - 1))
    return mean, quantile * float(array.std(ddof=1)) / math.sqrt(array.size)


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise InputError(f"Confidence {confidence} is not between 0 and 1.", "Write 95 percent as 0.95.")
