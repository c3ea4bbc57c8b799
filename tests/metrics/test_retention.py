"""The verdict keeps its promised error rates, and agrees with a permutation test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from merganser.metrics.paired import paired_change
from merganser.metrics.retention import Bounds, Verdict, beyond_p, judge
from merganser.metrics.score import Score
from merganser.metrics.text import score_of


def answers(rng: np.random.Generator, n: int, score: float, lost: float, gained: float) -> tuple[list, list]:
    """Right and wrong answers before and after, of which shares are lost and gained."""
    draw = rng.random(n)
    before = draw < score
    after = np.where(draw < lost, False, np.where(draw >= 1 - gained, True, before))
    return before.astype(float).tolist(), after.astype(float).tolist()


def verdict(rng: np.random.Generator, drops: list[float], n: int = 150, allowed: float = 0.05) -> Verdict:
    """The verdict on tasks of made-up answers that lose these shares."""
    parts = [answers(rng, n, 0.8, drop + 0.02, 0.02) for drop in drops]
    changes = {str(number): paired_change(*part) for number, part in enumerate(parts)}
    scores = {name: score_of(part[1]) for name, part in zip(changes, parts, strict=True)}
    return judge(changes, scores, [], Bounds(max_drop=allowed))[0]


def test_a_thousand_simulated_runs() -> None:
    """At the bound itself, where errors are likeliest, at most 5 % of the verdicts are wrong, up to chance."""
    rng = np.random.default_rng(3)
    at_bound = [verdict(rng, [0.05, 0.05, 0.05]) for _ in range(500)]
    one_beyond = [verdict(rng, [0.0, 0.05, 0.0]) for _ in range(500)]
    assert sum(each is Verdict.DROP for each in at_bound) / 500 <= 0.07
    assert sum(each is Verdict.KEEP for each in one_beyond) / 500 <= 0.07
    # And it can tell: most clear cases are found.
    assert sum(verdict(rng, [0.2, 0.0]) is Verdict.DROP for _ in range(20)) >= 18
    assert sum(verdict(rng, [0.0, 0.0], n=1000) is Verdict.KEEP for _ in range(20)) >= 18


def test_agrees_with_a_permutation_test() -> None:
    """Against no loss at all: answers before and after exchanged at random, for each of 25 made-up tasks."""
    rng = np.random.default_rng(5)
    for _ in range(25):
        before, after = (np.array(part) for part in answers(rng, 100, 0.7, rng.uniform(0.1, 0.25), 0.1))
        differences = after - before
        signs = rng.choice((-1, 1), size=(4000, 100))
        permuted = float(((signs * differences).sum(axis=1) <= differences.sum() + 1e-9).mean())
        p = beyond_p(paired_change(before, after), 0.0)[0]
        # The permutation test counts half of what equals the observation too much: answers are whole numbers.
        equal = float((np.abs((signs * differences).sum(axis=1) - differences.sum()) < 1e-9).mean())
        assert p == pytest.approx(permuted - equal / 2, abs=0.02)


def test_each_task_has_its_own_bound_and_a_new_one_its_least_score() -> None:
    same = paired_change([1.0] * 900, [1.0] * 900)
    lost = paired_change([1.0] * 900, [1.0] * 880 + [0.0] * 20)
    scores = {"old": Score(value=1.0, n=900, stderr=0.0), "safety": score_of([1.0] * 880 + [0.0] * 20)}
    scores["new"] = score_of([1.0] * 850 + [0.0] * 50)
    changes = {"old": same, "safety": lost}
    found, tasks = judge(changes, scores, ["new"], Bounds(max_drop=0.05, min_new=0.9))
    assert (found, [each.verdict for each in tasks]) == (Verdict.KEEP, [Verdict.KEEP] * 3)
    found, tasks = judge(changes, scores, ["new"], Bounds(max_drop=0.05, max_drop_of={"safety": 0.0}))
    assert (found, [each.verdict for each in tasks]) == (Verdict.DROP, [Verdict.KEEP, Verdict.DROP, Verdict.KEEP])
    assert judge(changes, scores, ["new"], Bounds(max_drop=0.05, min_new=0.97))[0] is Verdict.DROP
    assert judge({}, {"new": score_of([0.0] * 50)}, ["new"], Bounds(min_new=0.0))[0] is Verdict.KEEP


def test_what_cannot_be_told_names_the_number_of_examples() -> None:
    """Two of 60 lost, none allowed beyond 2 %: .0333 - .02 with deviation .18 needs 1,120 examples or more."""
    change = paired_change([1.0] * 60, [1.0] * 58 + [0.0] * 2)
    scores = {"t": score_of([1.0] * 58 + [0.0] * 2)}
    found, (task,) = judge({"t": change}, scores, [], Bounds())
    assert (found, task.verdict) == (Verdict.UNCLEAR, Verdict.UNCLEAR)
    assert task.needed is not None
    assert 1000 < task.needed < 1300


def test_how_many_examples_would_tell_whether_a_new_task_is_good_enough() -> None:
    """Of 90 % and 89.4 %: 1.645^2 .09 / .006^2 = 6,765; doubled from 1,000 until it suffices."""
    scores = {"t": score_of([1.0] * 900 + [0.0] * 100)}
    _, (task,) = judge({}, scores, ["t"], Bounds(min_new=0.894))
    assert (task.verdict, task.needed) == (Verdict.UNCLEAR, 8000)


def test_scores_between_right_and_wrong_have_the_p_value_of_a_t_test() -> None:
    rng = np.random.default_rng(4)
    before, after = rng.beta(6, 2, (2, 30))
    test = ttest_1samp(after - before, -0.02, alternative="less")
    assert beyond_p(paired_change(before, after), 0.02) == pytest.approx((test.pvalue, 1 - test.pvalue))


def test_scores_between_right_and_wrong() -> None:
    rng = np.random.default_rng(2)
    before = rng.beta(6, 2, 400)
    worse = np.clip(before - 0.1, 0, 1)
    change = paired_change(before, worse)
    assert judge({"t": change}, {"t": score_of(worse)}, [], Bounds())[0] is Verdict.DROP
    assert judge({"t": change}, {"t": score_of(worse)}, [], Bounds(max_drop=0.2))[0] is Verdict.KEEP
