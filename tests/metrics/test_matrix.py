from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from merganser.errors import InputError
from merganser.metrics import Score, ScoreMatrix, ScoreRow


def score(value: float, n: int = 10, stderr: float = 0.1) -> Score:
    return Score(value=value, n=n, stderr=stderr)


def two_tasks() -> ScoreMatrix:
    matrix = ScoreMatrix(["a", "b"])
    matrix.add_row([], {"a": score(0.1)})
    matrix.add_row(["a"], {"b": score(0.25, 40), "a": score(0.9)})
    return matrix


def test_values_have_a_row_per_stage_and_a_column_per_task() -> None:
    matrix = two_tasks()
    np.testing.assert_array_equal(matrix.values, [[0.1, math.nan], [0.9, 0.25]])
    assert len(matrix) == 2
    assert matrix.tasks == ("a", "b")


def test_rows_are_in_the_order_of_the_columns_and_copies() -> None:
    matrix = two_tasks()
    assert matrix.rows[1] == ScoreRow(learned=["a"], scores={"a": score(0.9), "b": score(0.25, 40)})
    assert list(matrix.rows[1].scores) == ["a", "b"]
    matrix.rows[1].scores.clear()
    assert matrix.score(1, "b") == score(0.25, 40)


def test_an_empty_matrix_has_two_dimensions() -> None:
    assert ScoreMatrix().values.shape == (0, 0)
    assert ScoreMatrix(["a", "b"]).values.shape == (0, 2)
    matrix = ScoreMatrix()
    matrix.add_row([], {})
    assert matrix.values.shape == (1, 0)


def test_values_is_a_copy() -> None:
    matrix = two_tasks()
    matrix.values[0, 0] = 1.0
    assert matrix.values[0, 0] == 0.1


def test_learned_rows() -> None:
    matrix = ScoreMatrix(["a", "b", "c", "d"])
    matrix.add_row([], {})
    assert matrix.add_row(["c"], {}) == 1
    assert matrix.add_row(["b", "a"], {}) == 2
    assert [row.learned for row in matrix.rows] == [[], ["c"], ["b", "a"]]
    assert matrix.learned_tasks == ("c", "b", "a")


def test_a_task_that_becomes_known_late_is_missing_until_filled() -> None:
    matrix = two_tasks()
    matrix.add_task("c")
    assert math.isnan(matrix.values[1, 2])
    assert matrix.score(1, "c") is None
    matrix.set(0, "c", score(0.5))
    matrix.set(-1, "c", score(0.75))
    assert matrix.score(0, "c") == score(0.5)
    assert matrix.score(1, "c") == matrix.score(-1, "c") == score(0.75)
    matrix.add_row(["c"], {"c": score(1.0)})
    assert matrix.learned_tasks == ("a", "c")


@pytest.mark.parametrize(
    ("value", "n", "stderr"),
    [
        (1.01, 5, 0.0),
        (-0.1, 5, 0.0),
        (math.nan, 5, 0.0),
        (math.inf, 5, 0.0),
        (0.5, 0, 0.0),
        (0.5, 2.5, 0.0),
        (0.5, 5, -0.1),
        (0.5, 5, math.nan),
    ],
)
def test_impossible_scores_are_refused(value: float, n: int, stderr: float) -> None:
    with pytest.raises(ValidationError):
        Score(value=value, n=n, stderr=stderr)


def test_a_refused_row_changes_nothing() -> None:
    matrix = two_tasks()
    with pytest.raises(InputError, match="'z' is not in the score matrix"):
        matrix.add_row(["b"], {"a": score(0.5), "z": score(0.5)})
    assert len(matrix) == 2
    assert matrix.learned_tasks == ("a",)


def test_unknown_task_names_the_nearest() -> None:
    matrix = ScoreMatrix(["agnews", "yahoo"])
    matrix.add_row([], {})
    for call in (
        lambda: matrix.add_row(["agnew"], {}),
        lambda: matrix.add_row(["yahoo"], {"agnew": score(0.5)}),
        lambda: matrix.set(0, "agnew", score(0.5)),
        lambda: matrix.score(0, "agnew"),
    ):
        with pytest.raises(InputError, match=r"'agnew' is not in .* Did you mean 'agnews'\?"):
            call()
    assert len(matrix) == 1


def test_a_task_is_learned_once() -> None:
    matrix = two_tasks()
    with pytest.raises(InputError, match="'a' was already learned in row 1"):
        matrix.add_row(["a"], {})
    with pytest.raises(InputError, match="'b' was already learned"):
        matrix.add_row(["b", "b"], {})
    assert matrix.learned_tasks == ("a",)


def test_row_0_is_the_one_that_learned_nothing() -> None:
    matrix = ScoreMatrix(["a"])
    with pytest.raises(InputError, match="Row 0 is the state before training"):
        matrix.add_row(["a"], {})
    matrix.add_row([], {})
    with pytest.raises(InputError, match="Row 1 learned no task"):
        matrix.add_row([], {})


@pytest.mark.parametrize("tasks", [["a", "a"], [""], "ab", [3]])
def test_bad_columns(tasks: list[str]) -> None:
    with pytest.raises(InputError):
        ScoreMatrix(tasks)


def test_a_name_is_not_a_list_of_names() -> None:
    matrix = ScoreMatrix(["a"])
    matrix.add_row([], {})
    with pytest.raises(InputError, match="'learned' is one string"):
        matrix.add_row("a", {})


@pytest.mark.parametrize("row", [2, -3])
def test_row_outside(row: int) -> None:
    with pytest.raises(InputError, match="It has 2 rows"):
        two_tasks().score(row, "a")
