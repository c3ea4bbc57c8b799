from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from merganser.errors import InputError
from merganser.metrics import t_interval, wilson_interval


@settings(deadline=None)
@given(st.integers(1, 2000), st.data(), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_agrees_with_scipy(n: int, data: st.DataObject, confidence: float) -> None:
    right = data.draw(st.integers(0, n))
    low, high = wilson_interval(right / n, n, confidence)
    expected = stats.binomtest(right, n).proportion_ci(confidence, method="wilson")
    assert (low, high) == (pytest.approx(expected.low, abs=1e-9), pytest.approx(expected.high, abs=1e-9))
    assert 0.0 <= low <= right / n <= high <= 1.0


def test_wilson_by_hand() -> None:
    # All of 10 right at 95 %: the lower limit is n / (n + z^2) = 10 / 13.8415.
    low, high = wilson_interval(1.0, 10)
    assert low == pytest.approx(10 / (10 + 1.959963985**2))
    assert high == 1.0
    assert wilson_interval(0.0, 10)[0] == 0.0


def test_wilson_covers_as_often_as_claimed() -> None:
    n, truth = 30, 0.85
    hits = [low <= truth <= high for low, high in (wilson_interval(k / n, n) for k in range(n + 1))]
    coverage = float(np.dot(hits, stats.binom.pmf(np.arange(n + 1), n, truth)))
    assert 0.93 <= coverage <= 0.99


@pytest.mark.parametrize("arguments", [(1.2, 10), (-0.1, 10), (math.nan, 10), (0.5, 0), (0.5, 10, 1.0), (0.5, 10, 95)])
def test_wilson_refuses(arguments: tuple[float, ...]) -> None:
    with pytest.raises(InputError):
        wilson_interval(*arguments)  # type: ignore[arg-type]


def test_t_interval_by_hand() -> None:
    # 1 2 3: mean 2, deviation 1, t(.975, 2 degrees of freedom) = 4.302653.
    mean, half = t_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)


def test_one_seed_has_no_interval() -> None:
    assert t_interval([0.4]) == (0.4, None)


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=10), st.floats(-5, 5))
def test_shift_moves_the_mean_only(values: list[float], shift: float) -> None:
    mean, half = t_interval(values)
    moved, same = t_interval([value + shift for value in values])
    assert moved == pytest.approx(mean + shift, abs=1e-9)
    assert same == pytest.approx(half, abs=1e-9)
    wider = t_interval(values, 0.99)[1]
    assert half is not None
    assert wider is not None
    assert wider >= half


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [math.inf]])
def test_t_interval_refuses(values: list[float]) -> None:
    with pytest.raises(InputError):
        t_interval(values)
    with pytest.raises(InputError):
        t_interval([0.5, 0.6], confidence=0.0)
