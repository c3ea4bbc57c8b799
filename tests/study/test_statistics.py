"""Statistics over runs and test examples: known answers, coverage of intervals, error rate of the test."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from merganser.errors import InputError
from merganser.metrics.intervals import t_interval
from merganser.study import statistics
from merganser.study.statistics import Block, Sample, estimate, pareto_front

Array = np.ndarray


def plain(values: list[float]) -> Sample:
    return Sample(np.array(values), ["1"] * len(values), list(range(len(values))))


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 400)


def simulated(
    rng: np.random.Generator, orders: int, seeds: int, true: float, *, run: float, order: float, example: float
) -> Sample:
    """Differences of two tasks, 60 test examples each, which vary with run, order, example, and answer."""
    of_order = rng.normal(0, order, orders) if order else np.zeros(orders)
    runs = true + np.repeat(of_order, seeds) + rng.normal(0, run, orders * seeds)
    tasks = [
        runs[:, None] + np.round(rng.normal(0, example, 60), 1) + np.round(rng.normal(0, 0.1, (runs.size, 60)), 1)
        for _ in range(2)
    ]
    values = np.mean([task.mean(axis=1) for task in tasks], axis=0)
    labels = np.repeat(np.arange(orders), seeds).tolist(), list(range(seeds)) * orders
    return Sample(values, *labels, [Block(task, 0.5) for task in tasks])


def share(of: Callable[[int], bool], times: int = 60) -> float:
    return sum(of(number) for number in range(times)) / times


def test_mean_and_standard_error_are_those_of_the_runs() -> None:
    values = [0.70, 0.72, 0.71, 0.75, 0.69]
    found = estimate(plain(values))
    mean, half = t_interval(values)
    assert found.mean == pytest.approx(mean)
    assert found.stderr == pytest.approx(np.std(values, ddof=1) / 5**0.5)
    assert found.low == pytest.approx(mean - half, abs=0.006)
    assert found.high == pytest.approx(mean + half, abs=0.006)
    assert found.p is None  # a score of zero means nothing


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize(
    ("orders", "seeds", "spread"),
    [
        (1, 5, {"run": 0.02, "order": 0.0, "example": 0.0}),
        (1, 3, {"run": 0.01, "order": 0.0, "example": 0.4}),
        (3, 5, {"run": 0.01, "order": 0.0, "example": 0.4}),
        (3, 5, {"run": 0.01, "order": 0.05, "example": 0.1}),
    ],
)
def test_intervals_cover_as_often_as_they_promise(orders: int, seeds: int, spread: dict[str, float]) -> None:
    def covers(number: int) -> bool:
        sample = simulated(np.random.default_rng(number), orders, seeds, 0.03, **spread)
        found = estimate(sample, seed=number)
        assert found.low is not None
        assert found.high is not None
        return found.low <= 0.03 <= found.high

    assert share(covers) >= 0.88  # 95 %, less three standard errors of 60 trials


@pytest.mark.usefixtures("few_resamples")
def test_two_orders_that_differ_say_little_about_a_third() -> None:
    def covers(number: int) -> bool:
        rng = np.random.default_rng(number)
        values = np.repeat(rng.normal(0, 3, 2), 5) + rng.normal(0, 1, 10)
        found = estimate(Sample(values, [1] * 5 + [2] * 5, [*range(5)] * 2), seed=number)
        return found.low is not None and found.high is not None and found.low <= 0 <= found.high

    assert share(covers) >= 0.88


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize(("orders", "seeds"), [(1, 5), (2, 3)])
def test_no_difference_is_found_where_there_is_none(orders: int, seeds: int) -> None:
    def wrong(number: int) -> bool:
        rng = np.random.default_rng(number)
        found = estimate(simulated(rng, orders, seeds, 0.0, run=0.01, order=0.0, example=0.3), comparisons=1)
        return found.p is not None and found.p <= 0.05

    assert share(wrong) <= 0.12


@pytest.mark.usefixtures("few_resamples")
def test_two_runs_that_happen_to_be_alike_show_no_difference() -> None:
    def wrong(number: int) -> bool:
        rng = np.random.default_rng(number)
        scores = rng.normal(0, 0.02, (2, 1)) + np.round(rng.normal(0, 0.04, 30), 2)
        found = estimate(Sample(scores.mean(axis=1), [1, 1], [0, 1], [Block(scores, 1.0)]), comparisons=1)
        return found.p is not None and found.p <= 0.05

    assert share(wrong) <= 0.1


@pytest.mark.usefixtures("few_resamples")
def test_what_is_detectable_is_detected_four_times_out_of_five() -> None:
    rng = np.random.default_rng(0)
    detectable = 0.02 / 8**0.5 * (2.365 + 0.896)  # quantiles of t with 7 degrees of freedom

    def detected(_: int) -> bool:
        found = estimate(plain(rng.normal(detectable, 0.02, 8).tolist()), comparisons=1)
        assert found.permutation_p is not None
        return found.p is not None and found.p <= 0.05

    assert 0.66 <= share(detected) <= 0.94
    sizes = [estimate(plain(rng.normal(0, 0.02, 8).tolist()), comparisons=1).detectable for _ in range(20)]
    assert np.mean([size for size in sizes if size is not None]) == pytest.approx(detectable, rel=0.2)


def test_permutation_test_decides_only_where_there_are_runs_enough() -> None:
    five, eight = estimate(plain([0.02, 0.03, 0.025, 0.02, 0.03]), comparisons=1), estimate(
        plain([0.02, 0.03, 0.025, 0.02, 0.03, 0.021, 0.028, 0.024]), comparisons=1
    )  # fmt: skip
    assert five.permutation_p is None  # 2 of 32 exchanges are as extreme: .0625 at least
    assert five.p is not None
    assert five.p < 0.01
    assert eight.permutation_p == pytest.approx(2 / 256)
    assert eight.p == eight.permutation_p


def test_noise_of_single_answers_is_counted_once() -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(0, 0.4, (6, 400))  # runs and examples have no effect of their own
    found = estimate(Sample(scores.mean(axis=1), ["1"] * 6, range(6), [Block(scores, 1.0)]))
    assert found.stderr == pytest.approx(0.4 / (6 * 400) ** 0.5, rel=0.5)


def test_runs_of_an_order_that_are_alike_count_as_one() -> None:
    values = np.array([0.1, 0.1001, 0.0999, 0.2, 0.2001, 0.1999, 0.3, 0.3001, 0.2999])
    found = estimate(Sample(values, [1, 1, 1, 2, 2, 2, 3, 3, 3], [0, 1, 2] * 3), comparisons=1)
    assert found.units == "orders"
    assert found.stderr == pytest.approx(0.1 / 3**0.5, rel=0.01)
    assert found.p is not None
    assert found.p > 0.05  # two degrees of freedom


def test_one_run_has_no_spread_over_runs() -> None:
    alone = estimate(plain([0.7]), comparisons=1)
    assert (alone.low, alone.p, alone.detectable) == (None, None, None)
    scores = np.array([[1.0, 0.0] * 50])
    with_examples = estimate(Sample(np.array([0.5]), ["1"], [0], [Block(scores, 1.0)]), comparisons=1)
    assert with_examples.stderr == pytest.approx(0.05, rel=0.02)
    assert with_examples.p is None


def test_equal_runs_are_no_error() -> None:
    same = estimate(plain([0.0] * 8), comparisons=1)
    assert (same.low, same.high, same.p) == (0.0, 0.0, 1.0)
    assert estimate(plain([0.01, 0.01]), comparisons=1).p == 0.5  # two of one sign: half of all exchanges
    for value in (0.1, 0.25):  # of three times 0.1 the mean is not 0.1
        assert estimate(plain([value] * 3), comparisons=1).p == 0.25


def test_pareto_front_has_what_nothing_beats() -> None:
    assert pareto_front([1.0, 2.0, 2.0, 3.0, 4.0], [0.5, 0.7, 0.6, 0.7, 0.9]) == [0, 1, 4]
    assert pareto_front([2.0, 2.0], [0.5, 0.5]) == [0]


def test_values_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        plain([0.1, float("nan")])
    with pytest.raises(InputError, match="95 percent as"):
        estimate(plain([0.1, 0.2]), confidence=95)
