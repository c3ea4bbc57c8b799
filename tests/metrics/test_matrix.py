from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merganser.errors import InputError
from merganser.metrics import Entry, ScoreMatrix


def two_tasks() -> ScoreMatrix:
    matrix = ScoreMatrix(["a", "b"])
    matrix.add_row([], {"a": (0.1, 50, 0.04)})
    matrix.add_row(["a"], {"a": (0.9, 50, 0.04), "b": (0.25, 40, 0.07)})
    return matrix


def test_values_counts_and_errors_have_a_row_per_stage_and_a_column_per_task() -> None:
    matrix = two_tasks()
    np.testing.assert_array_equal(matrix.values, [[0.1, math.nan], [0.9, 0.25]])
    np.testing.assert_array_equal(matrix.stderrs, [[0.04, math.nan], [0.04, 0.07]])
    np.testing.assert_array_equal(matrix.counts, [[50, 0], [50, 40]])
    assert matrix.counts.dtype == np.int64
    assert matrix.rows == 2
    assert matrix.tasks == ("a", "b")


def test_an_empty_matrix_has_two_dimensions() -> None:
    assert ScoreMatrix().values.shape == (0, 0)
    assert ScoreMatrix(["a", "b"]).values.shape == (0, 2)
    matrix = ScoreMatrix()
    matrix.add_row([], {})
    assert matrix.values.shape == (1, 0)


def test_values_is_a_copy() -> None:
    matrix = two_tasks()
    matrix.values[0, 0] = 1.0
    assert matrix.value(0, "a") == 0.1


def test_learned_rows() -> None:
    matrix = ScoreMatrix(["a", "b", "c", "d"])
    matrix.add_row([], {})
    assert matrix.add_row(["c"], {}) == 1
    assert matrix.add_row(["b", "a"], {}) == 2
    assert [matrix.row_learned(task) for task in "abcd"] == [2, 2, 1, None]
    assert matrix.learned(2) == ("b", "a")
    assert matrix.learned(0) == ()
    assert matrix.learned_tasks == ("c", "b", "a")


def test_a_task_that_becomes_known_late_is_missing_until_filled() -> None:
    matrix = two_tasks()
    matrix.add_task("c")
    assert math.isnan(matrix.value(1, "c"))
    assert matrix.entry(1, "c") is None
    matrix.set(0, "c", (0.5, 10, 0.16))
    matrix.set(-1, "c", (0.75, 10, 0.14))
    assert matrix.entry(0, "c") == Entry(0.5, 10, 0.16)
    assert matrix.value(1, "c") == matrix.value(-1, "c") == 0.75
    matrix.add_row(["c"], {"c": (1.0, 10, 0.0)})
    assert matrix.row_learned("c") == 2


def test_numpy_numbers_become_plain_ones() -> None:
    matrix = ScoreMatrix(["a"])
    matrix.add_row([], {"a": (np.float32(0.5), np.int64(8), np.float64(0.1))})
    assert json.loads(json.dumps(matrix.to_dict())) == matrix.to_dict()
    assert type(matrix.entry(0, "a").n) is int  # type: ignore[union-attr]


def test_dict_form() -> None:
    assert two_tasks().to_dict() == {
        "tasks": ["a", "b"],
        "rows": [
            {"learned": [], "scores": {"a": {"value": 0.1, "n": 50, "stderr": 0.04}}},
            {
                "learned": ["a"],
                "scores": {
                    "a": {"value": 0.9, "n": 50, "stderr": 0.04},
                    "b": {"value": 0.25, "n": 40, "stderr": 0.07},
                },
            },
        ],
    }


entries = st.tuples(st.floats(0, 1), st.integers(1, 10_000), st.floats(0, 0.5))


@st.composite
def matrices(draw: st.DrawFn) -> ScoreMatrix:
    tasks = draw(st.lists(st.text(min_size=1, max_size=4), unique=True, max_size=4))
    order = draw(st.permutations(tasks))
    matrix = ScoreMatrix(tasks)
    scores = st.dictionaries(st.sampled_from(tasks), entries) if tasks else st.just({})
    matrix.add_row([], draw(scores))
    while order:
        size = draw(st.integers(1, len(order)))
        matrix.add_row(order[:size], draw(scores))
        order = order[size:]
    return matrix


@settings(deadline=None)
@given(matrices())
def test_json_round_trip(matrix: ScoreMatrix) -> None:
    again = ScoreMatrix.from_dict(json.loads(json.dumps(matrix.to_dict())))
    assert again.to_dict() == matrix.to_dict()
    assert again.learned_tasks == matrix.learned_tasks
    np.testing.assert_array_equal(again.values, matrix.values)


def test_from_dict_ignores_what_stands_beside_the_matrix() -> None:
    data = {**two_tasks().to_dict(), "format": 1, "summary": []}
    assert ScoreMatrix.from_dict(data).to_dict() == two_tasks().to_dict()


@pytest.mark.parametrize(
    ("score", "said"),
    [
        ((1.01, 5, 0.0), "1.01 is not in [0, 1]"),
        ((-0.1, 5, 0.0), "-0.1 is not in [0, 1]"),
        ((math.nan, 5, 0.0), "nan is not in [0, 1]"),
        ((math.inf, 5, 0.0), "inf is not in [0, 1]"),
        ((0.5, 0, 0.0), "n is 0"),
        ((0.5, 2.5, 0.0), "n is 2.5"),
        ((0.5, 5, -0.1), "standard error -0.1"),
        ((0.5, 5, math.nan), "standard error nan"),
        (("0.5", 5, 0.1), "value is '0.5'"),
        ((True, 5, 0.1), "value is True"),
        ((0.5, 5), "expected (value, n, stderr)"),
        (0.5, "expected (value, n, stderr)"),
    ],
)
def test_impossible_scores_are_refused_and_change_nothing(score: object, said: str) -> None:
    matrix = two_tasks()
    before = matrix.to_dict()
    with pytest.raises(InputError) as caught:
        matrix.add_row(["b"], {"a": (0.5, 50, 0.1), "b": score})  # type: ignore[dict-item]
    assert said in caught.value.cause
    assert "Row 2, task 'b'" in caught.value.cause
    assert caught.value.remedy
    assert matrix.to_dict() == before
    assert matrix.row_learned("b") is None
    with pytest.raises(InputError):
        matrix.set(0, "a", score)  # type: ignore[arg-type]
    assert matrix.to_dict() == before


def test_unknown_task_names_the_nearest() -> None:
    matrix = ScoreMatrix(["agnews", "yahoo"])
    matrix.add_row([], {})
    for call in (
        lambda: matrix.add_row(["agnew"], {}),
        lambda: matrix.add_row(["yahoo"], {"agnew": (0.5, 5, 0.1)}),
        lambda: matrix.set(0, "agnew", (0.5, 5, 0.1)),
        lambda: matrix.value(0, "agnew"),
        lambda: matrix.row_learned("agnew"),
    ):
        with pytest.raises(InputError, match=r"'agnew' is not in .* Did you mean 'agnews'\?"):
            call()
    assert matrix.rows == 1


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
        two_tasks().value(row, "a")


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"tasks": ["a"]},
        {"tasks": ["a"], "rows": [3]},
        {"tasks": ["a"], "rows": [{"learned": []}]},
        {"tasks": ["a"], "rows": [{"learned": [], "scores": []}]},
        {"tasks": ["a"], "rows": [{"learned": [], "scores": {"a": {"value": 0.5, "n": 3}}}]},
        {"tasks": ["a"], "rows": [{"learned": [], "scores": {"a": {"value": "x", "n": 3, "stderr": 0.1}}}]},
    ],
)
def test_damaged_dicts(data: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ScoreMatrix.from_dict(data)
