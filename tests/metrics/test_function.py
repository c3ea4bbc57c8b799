"""A function as a metric: how it is called, and what it may return."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from merganser.errors import InputError, RunError
from merganser.metrics import score_answers
from merganser.metrics.function import NamedMetric, metric_name, parameter_problem

ANSWERS, REFERENCES, INPUTS = ["a", "b", "b"], ["a", "a", "b"], ["x", "xx", "xxxx"]


def three(answers: Sequence[str], references: Sequence[str], inputs: Sequence[str]) -> list[float]:
    return [
        (answer == reference) / len(text) for answer, reference, text in zip(answers, references, inputs, strict=True)
    ]


def two(answers: Sequence[str], references: Sequence[str], *, weight: float = 0.5) -> Any:
    return np.array([answer == reference for answer, reference in zip(answers, references, strict=True)]) * weight


class Callable3:
    def __call__(self, answers: Any, references: Any, inputs: Any = None) -> Any:
        return [float(inputs is not None)] * len(answers)


@pytest.mark.parametrize(
    ("metric", "mean", "name"),
    [
        (three, (1 + 0 + 0.25) / 3, "tests.metrics.test_function:three"),
        (two, (0.5 + 0 + 0.5) / 3, "tests.metrics.test_function:two"),
        (functools.partial(two, weight=1.0), 2 / 3, "functools:partial"),
        (Callable3(), 1.0, "tests.metrics.test_function:Callable3"),
        (lambda a, r, weight=0.25: [weight] * 3, 0.25, "tests.metrics.test_function:<lambda>"),
        (lambda *lists: [True, False, False], 1 / 3, "tests.metrics.test_function:<lambda>"),
    ],
)
def test_a_function_is_called_with_what_it_takes(metric: Any, mean: float, name: str) -> None:
    score = score_answers(metric, ANSWERS, REFERENCES, INPUTS)
    assert (score.value, score.n) == (pytest.approx(mean), 3)
    assert metric_name(metric) == name


def test_the_standard_error_is_that_of_the_scores() -> None:
    # Scores 1, 0, 1/4: mean 5/12, deviations 7/12, -5/12, -2/12; s² = 78/288, error sqrt(s² / 3).
    assert score_answers(three, ANSWERS, REFERENCES, INPUTS).stderr == pytest.approx((78 / 288 / 3) ** 0.5)


@pytest.mark.parametrize(
    ("returned", "cause"),
    [
        ([1.0, 0.0], "returned 2 numbers for 3 answers"),
        (0.5, "returned one number for 3 answers"),
        ([[1.0, 0.0, 1.0]], "returned a table for 3 answers"),
        ([1.0, 50.0, 0.0], "returned 50.0 for example 2"),
        ([0.0, 0.0, float("nan")], "returned nan for example 3"),
        (["high", 1.0, 1.0], "returned no numbers: could not convert string to float: 'high'"),
        ([{}, 1.0, 1.0], "returned no numbers"),
        (None, "for 3 answers"),
        (
            ZeroDivisionError("three by nothing"),
            "failed at example 1 (answer 'a'): ZeroDivisionError: three by nothing",
        ),
    ],
)
def test_what_is_no_score_is_refused_by_the_name_of_the_function(returned: Any, cause: str) -> None:
    def mine(answers: Sequence[str], references: Sequence[str], inputs: Sequence[str]) -> Any:
        if isinstance(returned, Exception):
            raise returned
        return returned

    with pytest.raises(InputError) as caught:
        score_answers(mine, ANSWERS, REFERENCES, INPUTS)
    assert "mine' " in caught.value.cause
    assert cause in caught.value.cause
    assert "one number from 0 to 1 per example" in caught.value.remedy


def test_the_example_at_which_a_function_fails_is_named() -> None:
    def picky(answers: Sequence[str], references: Sequence[str]) -> list[float]:
        return [1 / len(answer) for answer in answers]

    answers = ["a"] * 37
    answers[22] = ""
    with pytest.raises(InputError, match=r"named' failed at example 23 \(answer ''\): ZeroDivisionError"):
        score_answers(NamedMetric("my:named", picky), answers, answers, answers)

    def together(answers: Sequence[str], references: Sequence[str]) -> list[float]:
        raise_if = {1: 1}[min(len(answers), 2)]
        return [float(raise_if)] * len(answers)

    with pytest.raises(InputError, match=r"together' failed: KeyError: 2"):
        score_answers(together, ANSWERS, REFERENCES, INPUTS)

    def of_several(answers: Sequence[str], references: Sequence[str]) -> list[float]:
        return [float(answer) / (len(answers) - 1) for answer in answers]

    numbers = ["0", "1", "2", "3", "4", "x"]
    with pytest.raises(InputError, match=r"of_several' failed at example 6 \(answer 'x'\): ValueError"):
        score_answers(of_several, numbers, numbers, numbers)

    def explained(answers: Sequence[str], references: Sequence[str]) -> list[float]:
        raise RunError("The server is gone.", "Start it.")

    with pytest.raises(InputError, match=r"^The server is gone\. Start it\.$"):
        score_answers(explained, ANSWERS, REFERENCES, INPUTS)


def test_percent_are_refused_with_the_range() -> None:
    with pytest.raises(InputError, match=r"returned 85\.0 for example 1.*0 for the worst .* 0\.85 for 85 percent"):
        score_answers(lambda a, r: [85.0, 1.0, 0.0], ANSWERS, REFERENCES, INPUTS)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda answers, references: [], ""),
        (lambda answers, references, inputs, *, weight=1: [], ""),
        (Callable3(), ""),
        (Callable3, "it is not a function"),
        (0.5, "it is not a function"),
        (lambda argv, master=None: [], "its parameters are (argv, master), and not answers"),
        (lambda *lists: [], "its parameters are (lists)"),
        (lambda answers, references, inputs, model: [], "its parameters are (answers, references, inputs, model)"),
        (dict.get, "its parameters are (self, key, default)"),
    ],
)
def test_parameters_of_a_function_that_a_file_names(function: Any, problem: str) -> None:
    assert parameter_problem(function).startswith(problem)
    assert bool(parameter_problem(function)) == bool(problem)
