from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merganser.errors import InputError
from merganser.metrics import Metric, Score, ScoreMatrix, summary
from merganser.metrics.continual import (
    average_performance,
    backward_transfer,
    forgetting_chaudhry,
    forgetting_including_last,
    forgetting_since_learned,
    forward_transfer_single_task,
)

NAMES = [
    "OP",
    "BWT",
    "BWT (all rows)",
    "FWT (single-task)",
    "FWT (GEM)",
    "forgetting (Chaudhry)",
    "forgetting (since learned)",
    "forgetting (incl. last row)",
    "learning accuracy",
    "zero-shot",
]


def score_of(value: float, stderr: float = 0.1) -> Score:
    return Score(value=value, n=100, stderr=stderr)


def filled(
    rows: Sequence[Sequence[float | None]],
    learned: Sequence[Sequence[int]],
    stderrs: Sequence[Sequence[float]] | None = None,
    columns: Sequence[int] | None = None,
) -> ScoreMatrix:
    """Matrix with tasks t0, t1, ... from rows of scores; ``columns`` permutes the columns."""
    order = columns if columns is not None else range(len(rows[0]))
    matrix = ScoreMatrix([f"t{j}" for j in order])
    for i, row in enumerate(rows):
        scores = {
            f"t{j}": score_of(value, stderrs[i][j] if stderrs is not None else 0.0)
            for j, value in enumerate(row)
            if value is not None
        }
        matrix.add_row([f"t{j}" for j in learned[i]], scores)
    return matrix


def by_name(matrix: ScoreMatrix, references: dict[str, Score] | None = None) -> dict[str, Metric]:
    return {metric.name: metric for metric in summary(matrix, references)}


THREE = [
    [0.10, 0.20, 0.30],
    [0.80, 0.50, 0.20],
    [0.85, 0.60, 0.40],
    [0.40, 0.65, 0.90],
]
IN_ORDER = [[], [0], [1], [2]]
ERRORS = [
    [0.01, 0.02, 0.03],
    [0.04, 0.05, 0.06],
    [0.07, 0.08, 0.09],
    [0.10, 0.11, 0.12],
]
REFERENCES = {"t0": score_of(0.70, 0.01), "t1": score_of(0.70, 0.02), "t2": score_of(0.70, 0.03)}

# Worked out by hand from THREE. In brackets, for the forgetting: best earlier scores of t0 and t1, minus the last.
BY_HAND = {
    "OP": (0.40 + 0.65 + 0.90) / 3,
    "BWT": ((0.40 - 0.80) + (0.65 - 0.60)) / 2,
    "BWT (all rows)": ((0.85 - 0.80) + (0.40 - 0.80) + (0.65 - 0.60)) / 3,
    "FWT (single-task)": ((0.80 - 0.70) + (0.60 - 0.70) + (0.90 - 0.70)) / 3,
    "FWT (GEM)": ((0.50 - 0.20) + (0.40 - 0.30)) / 2,
    "forgetting (Chaudhry)": ((0.85 - 0.40) + (0.60 - 0.65)) / 2,
    "forgetting (since learned)": ((0.85 - 0.40) + (0.60 - 0.65)) / 2,
    "forgetting (incl. last row)": ((0.85 - 0.40) + 0.0) / 2,
    "learning accuracy": (0.80 + 0.60 + 0.90) / 3,
    "zero-shot": (0.10 + 0.20 + 0.30) / 3,
}


def root(*squares: float) -> float:
    return math.sqrt(sum(x * x for x in squares))


# The entry a[1][t0] (error .04) enters "BWT (all rows)" twice, so its weight is 2/3, not two independent thirds.
# The largest error among the candidates of each maximum counts: t0 rows 1..2 -> .07; t1 rows 1..2 -> .08.
ERRORS_BY_HAND = {
    "OP": root(0.10, 0.11, 0.12) / 3,
    "BWT": root(0.10, 0.04, 0.11, 0.08) / 2,
    "BWT (all rows)": root(2 * 0.04, 0.07, 0.10, 0.11, 0.08) / 3,
    "FWT (single-task)": root(0.04, 0.08, 0.12, 0.01, 0.02, 0.03) / 3,
    "FWT (GEM)": root(0.05, 0.02, 0.09, 0.03) / 2,
    "forgetting (Chaudhry)": root(0.07, 0.10, 0.08, 0.11) / 2,
    "forgetting (since learned)": root(0.07, 0.10, 0.08, 0.11) / 2,
    "forgetting (incl. last row)": root(0.07, 0.10, 0.08, 0.11) / 2,
    "learning accuracy": root(0.04, 0.08, 0.12) / 3,
    "zero-shot": root(0.01, 0.02, 0.03) / 3,
}


def test_three_tasks_by_hand() -> None:
    metrics = by_name(filled(THREE, IN_ORDER, ERRORS), REFERENCES)
    assert list(metrics) == NAMES
    for name in NAMES:
        assert metrics[name].value == pytest.approx(BY_HAND[name], abs=1e-12), name
        assert metrics[name].stderr == pytest.approx(ERRORS_BY_HAND[name], abs=1e-12), name


def test_forgetting_before_learning_counts_for_chaudhry_only() -> None:
    # t1 stood at 0.9 after t0 was learned, sank to 0.6 when it was learned itself, and ends at 0.5.
    matrix = filled([[0.95, 0.95, 0], [0.8, 0.9, 0], [0.8, 0.6, 0], [0.8, 0.5, 1]], IN_ORDER)
    assert forgetting_chaudhry(matrix).value == pytest.approx((0.0 + 0.4) / 2)
    assert forgetting_since_learned(matrix).value == pytest.approx((0.0 + 0.1) / 2)


def test_error_of_a_maximum_is_the_largest_of_its_scores() -> None:
    # Best score of t0: 0.9 (error .01), beside 0.8 (error .06); last score 0.5 (error .08).
    rows = [[0.0, 0.0, 0.0], [0.9, 0.5, 0.0], [0.8, 0.5, 0.0], [0.5, 0.5, 0.9]]
    errors = [[0.0, 0.0, 0.0], [0.01, 0.0, 0.0], [0.06, 0.0, 0.0], [0.08, 0.0, 0.0]]
    metric = forgetting_since_learned(filled(rows, IN_ORDER, errors))
    assert metric.value == pytest.approx(0.4 / 2)
    assert metric.stderr == pytest.approx(0.10 / 2)


def test_forgetting_names_the_sign() -> None:
    improving = filled([[0, 0], [0.5, 0], [0.7, 0.9]], [[], [0], [1]])
    assert forgetting_since_learned(improving).value == pytest.approx(-0.2)
    assert backward_transfer(improving).value == pytest.approx(0.2)
    assert forgetting_including_last(improving).value == 0.0


def test_two_tasks_learned_at_once_then_one() -> None:
    matrix = filled([[0.1, 0.2, 0.3], [0.8, 0.6, 0.4], [0.5, 0.7, 0.9]], [[], [0, 1], [2]])
    metrics = by_name(matrix, REFERENCES)
    assert metrics["OP"].value == pytest.approx(2.1 / 3)
    assert metrics["BWT"].value == pytest.approx((-0.3 + 0.1) / 2)  # both earlier tasks, T-1 = 2
    assert metrics["FWT (GEM)"].value == pytest.approx(0.4 - 0.3)  # only t2 was learned after others
    assert metrics["learning accuracy"].value == pytest.approx((0.8 + 0.6 + 0.9) / 3)
    assert metrics["FWT (single-task)"].value == pytest.approx((0.1 - 0.1 + 0.2) / 3)
    assert metrics["forgetting (Chaudhry)"].value == pytest.approx((0.3 - 0.1) / 2)


def test_two_tasks_learned_at_once_at_the_end() -> None:
    matrix = filled([[0.1, 0.2, 0.3], [0.8, 0.6, 0.4], [0.5, 0.7, 0.9]], [[], [0], [1, 2]])
    metrics = by_name(matrix)
    assert metrics["BWT"].value == pytest.approx(-0.3)  # t1 and t2 belong to the last row: neither has a "later"
    assert metrics["FWT (GEM)"].value == pytest.approx(((0.6 - 0.2) + (0.4 - 0.3)) / 2)


def test_joint_training_has_no_order_to_transfer_along() -> None:
    matrix = filled([[0.1, 0.2], [0.8, 0.6]], [[], [0, 1]])
    metrics = by_name(matrix, {"t0": score_of(0.7, 0.0), "t1": score_of(0.5, 0.0)})
    defined = {name for name, metric in metrics.items() if metric.value is not None}
    assert defined == {"OP", "FWT (single-task)", "learning accuracy", "zero-shot"}
    assert metrics["OP"].value == metrics["learning accuracy"].value == pytest.approx(0.7)
    assert metrics["FWT (single-task)"].value == pytest.approx(0.1)
    assert metrics["BWT"].stderr is None


@pytest.mark.parametrize("matrix", [ScoreMatrix(), ScoreMatrix(["t0"]), filled([[0.5, 0.5]], [[]])])
def test_nothing_learned_nothing_defined(matrix: ScoreMatrix) -> None:
    assert [metric.name for metric in summary(matrix)] == NAMES
    assert all(metric.value is None and metric.stderr is None for metric in summary(matrix))


def test_tasks_not_learned_take_no_part() -> None:
    known = by_name(filled(THREE, IN_ORDER, ERRORS), REFERENCES)
    wider = filled([[*row, 0.99] for row in THREE], IN_ORDER, [[*row, 0.3] for row in ERRORS])
    for name, metric in by_name(wider, REFERENCES).items():
        assert metric == known[name]


# Row and task of a missing entry -> the metrics that need it.
LAST_0 = {"OP", "BWT", "BWT (all rows)", *NAMES[5:8]}


@pytest.mark.parametrize(
    ("row", "task", "undefined"),
    [
        (0, 0, {"zero-shot"}),
        (0, 2, {"zero-shot", "FWT (GEM)"}),
        (1, 0, {"BWT", "BWT (all rows)", "FWT (single-task)", "learning accuracy", *NAMES[5:8]}),
        (1, 1, {"FWT (GEM)", "forgetting (Chaudhry)"}),
        (1, 2, set()),
        (2, 0, {"BWT (all rows)", *NAMES[5:8]}),
        (3, 0, LAST_0),
        (3, 2, {"OP", "FWT (single-task)", "learning accuracy"}),
    ],
)
def test_a_missing_entry_undefines_exactly_what_needs_it(row: int, task: int, undefined: set[str]) -> None:
    rows: list[list[float | None]] = [list(values) for values in THREE]
    rows[row][task] = None
    metrics = by_name(filled(rows, IN_ORDER, ERRORS), REFERENCES)
    assert {name for name, metric in metrics.items() if metric.value is None} == undefined
    for name in set(NAMES) - undefined - {"forgetting (Chaudhry)"}:
        assert metrics[name].value == pytest.approx(BY_HAND[name])


def test_single_task_forward_transfer_needs_every_reference() -> None:
    matrix = filled(THREE, IN_ORDER, ERRORS)
    assert forward_transfer_single_task(matrix).value is None
    assert forward_transfer_single_task(matrix, {"t0": score_of(0.7)}).value is None
    with pytest.raises(InputError, match="'t9'"):
        forward_transfer_single_task(matrix, REFERENCES | {"t9": score_of(0.5)})


score = st.integers(0, 200).map(lambda k: k / 200)


@st.composite
def streams(draw: st.DrawFn) -> tuple[np.ndarray, list[list[int]], np.ndarray]:
    """Scores, tasks learned per row (joint rows included) and standard errors."""
    tasks = draw(st.integers(1, 5))
    order = draw(st.permutations(range(tasks)))
    learned: list[list[int]] = [[]]
    while order:
        size = draw(st.integers(1, len(order)))
        learned.append(order[:size])
        order = order[size:]
    shape = (len(learned), tasks)
    size = shape[0] * shape[1]
    values = draw(st.lists(score, min_size=size, max_size=size))
    errors = draw(st.lists(st.floats(0, 0.5), min_size=size, max_size=size))
    return np.reshape(values, shape), learned, np.reshape(errors, shape)


def references_of(values: np.ndarray) -> dict[str, Score]:
    return {f"t{j}": score_of(float(values[-1, j])) for j in range(values.shape[1])}


@settings(deadline=None)
@given(streams(), st.data())
def test_order_of_columns_changes_nothing(
    stream: tuple[np.ndarray, list[list[int]], np.ndarray], data: st.DataObject
) -> None:
    values, learned, errors = stream
    columns = data.draw(st.permutations(range(values.shape[1])))
    plain = summary(filled(values.tolist(), learned, errors.tolist()), references_of(values))
    permuted = summary(filled(values.tolist(), learned, errors.tolist(), columns), references_of(values))
    assert plain == permuted


@settings(deadline=None)
@given(streams(), score)
def test_a_constant_matrix_transfers_and_forgets_nothing(
    stream: tuple[np.ndarray, list[list[int]], np.ndarray], constant: float
) -> None:
    values, learned, _ = stream
    flat = np.full(values.shape, constant)
    for name, metric in by_name(filled(flat.tolist(), learned), references_of(flat)).items():
        if metric.value is not None:
            expected = constant if name in ("OP", "learning accuracy", "zero-shot") else 0.0
            assert metric.value == pytest.approx(expected, abs=1e-12), name


@settings(deadline=None)
@given(streams())
def test_identities_and_bounds(stream: tuple[np.ndarray, list[list[int]], np.ndarray]) -> None:
    values, learned, errors = stream
    tasks, rows = values.shape[1], values.shape[0]
    metrics = by_name(filled(values.tolist(), learned, errors.tolist()), references_of(values))
    found = {name: metric.value for name, metric in metrics.items()}
    for name, metric in metrics.items():
        assert (metric.value is None) == (metric.stderr is None)
        if metric.value is not None and metric.stderr is not None:
            low = 0.0 if name in ("OP", "learning accuracy", "zero-shot", "forgetting (incl. last row)") else -1.0
            assert low - 1e-12 <= metric.value <= 1.0 + 1e-12
            assert 0.0 <= metric.stderr <= 1.0
    # References are the last row, so the single-task transfer is learning accuracy - OP ...
    assert found["OP"] is not None
    assert found["learning accuracy"] is not None
    assert found["FWT (single-task)"] == pytest.approx(found["learning accuracy"] - found["OP"], abs=1e-12)
    earlier = sum(len(names) for names in learned[:-1])
    if earlier == 0:
        assert found["BWT"] is None
        assert found["FWT (GEM)"] is None
        return
    assert found["BWT"] is not None
    # ... and OP = learning accuracy + BWT * (number of earlier tasks) / T: what was reached plus what came after.
    assert found["OP"] == pytest.approx(found["learning accuracy"] + found["BWT"] * earlier / tasks, abs=1e-12)
    ordered = [-found["BWT"], *(found[name] for name in ("forgetting (since learned)", "forgetting (Chaudhry)"))]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(ordered))
    assert ordered[1] <= found["forgetting (incl. last row)"] + 1e-12  # type: ignore[operator]
    if rows == 3:
        assert found["BWT (all rows)"] == pytest.approx(found["BWT"])
        assert found["forgetting (Chaudhry)"] == pytest.approx(-found["BWT"], abs=1e-12)


@settings(deadline=None)
@given(streams())
def test_one_task_per_row_is_the_matrix_form_of_gem(
    stream: tuple[np.ndarray, list[list[int]], np.ndarray],
) -> None:
    size = min(stream[0].shape[0] - 1, stream[0].shape[1])
    table = stream[0][: size + 1, :size]
    trained = table[1:]  # GEM's R, row i after task i
    metrics = by_name(filled(table.tolist(), [[], *([j] for j in range(size))]))
    assert metrics["OP"].value == pytest.approx(trained[-1].mean(), abs=1e-12)
    if size > 1:
        assert metrics["BWT"].value == pytest.approx((trained[-1] - np.diag(trained))[:-1].mean(), abs=1e-12)
        assert metrics["FWT (GEM)"].value == pytest.approx((np.diag(trained, 1) - table[0, 1:]).mean(), abs=1e-12)
        below = np.tril_indices(size, -1)
        assert metrics["BWT (all rows)"].value == pytest.approx((trained - np.diag(trained))[below].mean(), abs=1e-12)


def test_standard_errors_match_a_simulation() -> None:
    """Redraw every entry with its error: the spread of OP and BWT is the standard error stated."""
    generator = np.random.default_rng(7)
    stated = filled(THREE, IN_ORDER, ERRORS)
    scaled = np.asarray(ERRORS) / 4  # small enough that no draw leaves [0, 1]
    ops, bwts = [], []
    for _ in range(1500):
        drawn = np.clip(generator.normal(THREE, scaled), 0, 1)
        matrix = filled(drawn.tolist(), IN_ORDER)
        ops.append(average_performance(matrix).value)
        bwts.append(backward_transfer(matrix).value)
    assert np.std(ops) == pytest.approx(average_performance(stated).stderr / 4, rel=0.1)  # type: ignore[operator]
    assert np.std(bwts) == pytest.approx(backward_transfer(stated).stderr / 4, rel=0.1)  # type: ignore[operator]
