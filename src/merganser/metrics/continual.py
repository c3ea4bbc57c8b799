"""Metrics of continual learning, each a pure function of a score matrix, each with its definition and source.

Symbols: ``a[i][j]`` is the score on task ``j`` at row ``i`` (row 0 before training), ``L`` the last row, ``r(j)`` the
row right after task ``j`` was learned, ``b[j]`` the score on ``j`` of a fresh model trained on ``j`` alone. When one
task is learned per row, ``r(j) = j`` and ``L = T``, and the formulas are those of the papers; with joint rows "tasks
learned before the last row" takes the place of "the first T-1 tasks". Tasks that have not been learned are ignored.

**Undefined.** A metric is ``None`` when there is nothing to average or when an entry it needs was not measured.
Averaging only the measured entries would give another number under the same name.

**Standard errors.** Every metric is a weighted sum of entries; its standard error is the root of the summed squares of
weight times the entry's standard error, which takes the entries' errors as *independent*. Entries of different tasks
come from different test sets, where that holds. Differences between two entries of one task (backward and forward
transfer, forgetting) are taken on the same test examples: their errors are paired and nearly always positively
correlated, so the error stated is too large rather than too small. Only the finite test sets are covered: nothing here
measures how a result varies with the seed (see :func:`merganser.metrics.intervals.t_interval`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ConfigDict, Field

from merganser.errors import InputError
from merganser.metrics.matrix import ScoreMatrix
from merganser.metrics.score import Score

Term = tuple[float, Score | None]
"""Weight and entry of one summand; ``None`` for an entry that was not measured."""


class Metric(BaseModel):
    """A number that carries its definition."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="the name under which it appears in every output")
    value: float | None = Field(
        description="scores are fractions in [0, 1], so means lie in [0, 1] and differences in [-1, 1]; null: undefined"
    )
    stderr: float | None = Field(None, description="standard error from the finite test sets, same unit")
    definition: str = Field(description="the formula, in words and symbols")
    source: str = Field(description="the paper that defines it")


def average_performance(matrix: ScoreMatrix) -> Metric:
    """Compute overall performance (``OP``): mean over learned tasks of ``a[L][j]``.

    Lopez-Paz and Ranzato 2017 (GEM, there ACC); Feng et al. 2025 (AimMerging, there OP). Undefined before a task was
    learned or when the last row lacks one of the learned tasks.
    """
    terms = [[(1.0, matrix.score(-1, task))] for task in matrix.learned_tasks]
    return mean_metric(
        terms,
        "OP",
        "overall performance: mean over learned tasks of a[L][j], L = last row",
        "Lopez-Paz & Ranzato 2017 (GEM: ACC); Feng et al. 2025 (AimMerging: OP)",
    )


def backward_transfer(matrix: ScoreMatrix) -> Metric:
    """Compute backward transfer (``BWT``): mean over tasks learned before row L of ``a[L][j] - a[r(j)][j]``.

    Lopez-Paz and Ranzato 2017, equation 3; Feng et al. 2025. Negative when tasks are forgotten. With one task per row
    it is the mean over the first T-1 tasks, not over all T. Undefined when all tasks were learned in the last row.
    """
    terms = [_change(matrix, task, before, len(matrix) - 1) for task, before in _earlier(matrix)]
    return mean_metric(
        terms,
        "BWT",
        "backward transfer: mean over tasks learned before the last row of a[L][j] - a[r(j)][j]; divides by T-1",
        "Lopez-Paz & Ranzato 2017 (GEM, eq. 3); Feng et al. 2025 (AimMerging)",
    )


def backward_transfer_all_rows(matrix: ScoreMatrix) -> Metric:
    """Compute ``BWT (all rows)``: mean over rows ``i`` and tasks learned before row ``i`` of ``a[i][j] - a[r(j)][j]``.

    Diaz-Rodriguez et al. 2018 ("Don't forget, there is more than forgetting"): T(T-1)/2 differences when one task is
    learned per row, so what happened along the way counts, not only the end. Undefined as :func:`backward_transfer`.
    """
    terms = [
        _change(matrix, task, before, row)
        for task, before in _earlier(matrix)
        for row in range(before + 1, len(matrix))
    ]
    return mean_metric(
        terms,
        "BWT (all rows)",
        "mean over rows i and tasks learned before row i of a[i][j] - a[r(j)][j]; divides by T(T-1)/2",
        "Diaz-Rodriguez et al. 2018 (arXiv 1810.13166)",
    )


def forward_transfer_single_task(matrix: ScoreMatrix, references: Mapping[str, Score] | None = None) -> Metric:
    """Compute forward transfer, ``FWT (single-task)``: mean over learned tasks of ``a[r(j)][j] - b[j]``.

    Feng et al. 2025 (AimMerging). The first task counts too, although it had nothing to transfer from.

    Args:
        matrix: the scores.
        references: task -> score of a fresh model trained on that task alone. Undefined without one for each learned
            task.

    Raises:
        InputError: a reference for a task that is not in the matrix.
    """
    references = references or {}
    for task in references:
        if task not in matrix.tasks:
            raise InputError(
                f"There is a single-task reference for '{task}', which is not in the score matrix.",
                f"Tasks: {', '.join(matrix.tasks) or 'none'}.",
            )
    # Copies: one object may be the reference of several tasks, and entries are distinguished by identity.
    alone = {task: score.model_copy() for task, score in references.items()}
    terms = [[(1.0, matrix.score(row, task)), (-1.0, alone.get(task))] for task, row in _rows_learned(matrix)]
    return mean_metric(
        terms,
        "FWT (single-task)",
        "forward transfer: mean over learned tasks of a[r(j)][j] - b[j], b[j] = fresh model trained on task j alone",
        "Feng et al. 2025 (AimMerging)",
    )


def forward_transfer_gem(matrix: ScoreMatrix) -> Metric:
    """Compute forward transfer, ``FWT (GEM)``: mean over tasks with ``r(j) >= 2`` of ``a[r(j)-1][j] - a[0][j]``.

    Lopez-Paz and Ranzato 2017, equation 4: what learning *other* tasks did for a task not yet seen. Their baseline is
    the model at random initialisation; here it is row 0, the model before training, which for a pre-trained model can
    already solve much of the task. Undefined when fewer than two rows of training exist, or when a task was not
    measured before training and right before it was learned.
    """
    terms = [_change(matrix, task, 0, row - 1) for task, row in _rows_learned(matrix) if row >= 2]
    return mean_metric(
        terms,
        "FWT (GEM)",
        "forward transfer: mean over tasks with r(j) >= 2 of a[r(j)-1][j] - a[0][j], row 0 = before training",
        "Lopez-Paz & Ranzato 2017 (GEM, eq. 4)",
    )


def forgetting_chaudhry(matrix: ScoreMatrix) -> Metric:
    """Compute ``forgetting (Chaudhry)``: mean over tasks learned before row L of ``max a[i][j] - a[L][j]``, 1 <= i < L.

    Chaudhry et al. 2018 (Riemannian Walk): the best score on the task at any earlier stage of training, also before it
    was learned, minus the score now. Row 0 and the last row take no part in the maximum, so it can be negative.
    Undefined when all tasks were learned in the last row, or a task was not measured in each of these rows.

    The maximum of noisy scores lies above the noise-free one, which shows as forgetting that did not happen; the
    standard error does not cover that. It uses the largest standard error among the scores of the maximum, which bounds
    the spread of the maximum of normal variables whatever their correlation (Gaussian Poincare inequality).
    """
    terms = [_drop_from_best(matrix, task, range(1, len(matrix) - 1)) for task, _ in _earlier(matrix)]
    return mean_metric(
        terms,
        "forgetting (Chaudhry)",
        "mean over tasks learned before the last row of max over rows 1..L-1 of a[i][j], minus a[L][j]",
        "Chaudhry et al. 2018 (Riemannian Walk)",
    )


def forgetting_since_learned(matrix: ScoreMatrix) -> Metric:
    """Compute ``forgetting (since learned)``: as :func:`forgetting_chaudhry`, with the maximum over rows ``r(j)..L-1``.

    What a task lost of what *learning it* had reached; a score the pre-trained model had by itself and that was gone
    before the task was learned does not count. Needs no entry before a task was learned, so it is defined for tasks
    that became known late. At least ``-BWT`` and at most ``forgetting (Chaudhry)``.
    """
    terms = [_drop_from_best(matrix, task, range(row, len(matrix) - 1)) for task, row in _earlier(matrix)]
    return mean_metric(
        terms,
        "forgetting (since learned)",
        "mean over tasks learned before the last row of max over rows r(j)..L-1 of a[i][j], minus a[L][j]",
        "Chaudhry et al. 2018 (Riemannian Walk), maximum restricted to rows after the task was learned",
    )


def forgetting_including_last(matrix: ScoreMatrix) -> Metric:
    """Compute ``forgetting (incl. last row)``: the maximum over rows ``r(j)..L``, so no task counts below zero.

    The form that widely used code computes (Mammoth, Buzzega et al. 2020): a task that improved cannot hide another
    that was forgotten. Equals ``forgetting (since learned)`` with each task's term cut off at zero; cutting off does
    not increase the spread, so the standard error is that of the terms before.
    """
    terms = []
    for task, row in _earlier(matrix):
        drop = _drop_from_best(matrix, task, range(row, len(matrix) - 1))
        measured = [(weight, entry) for weight, entry in drop if entry is not None]
        if len(measured) == len(drop) and sum(weight * entry.value for weight, entry in measured) < 0.0:
            stderr = math.hypot(*(entry.stderr for _, entry in measured))
            drop = [(1.0, measured[-1][1].model_copy(update={"value": 0.0, "stderr": stderr}))]
        terms.append(drop)
    return mean_metric(
        terms,
        "forgetting (incl. last row)",
        "mean over tasks learned before the last row of max over rows r(j)..L of a[i][j], minus a[L][j]; at least 0",
        "Buzzega et al. 2020 (Mammoth, released code)",
    )


def learning_accuracy(matrix: ScoreMatrix) -> Metric:
    """Compute ``learning accuracy``: mean over learned tasks of ``a[r(j)][j]``, each right after it was learned.

    Riemer et al. 2019 (MER, LA). The ability to learn, whatever is kept. Undefined before a task was learned.
    """
    terms = [[(1.0, matrix.score(row, task))] for task, row in _rows_learned(matrix)]
    return mean_metric(
        terms,
        "learning accuracy",
        "mean over learned tasks of a[r(j)][j], each task right after it was learned",
        "Riemer et al. 2019 (MER: LA)",
    )


def zero_shot(matrix: ScoreMatrix) -> Metric:
    """Compute ``zero-shot``: mean over learned tasks of ``a[0][j]``, the model before any training.

    Taken over the same tasks as ``OP``, so that their difference is what training gained. Undefined before a task was
    learned or when a learned task was not measured before training.
    """
    terms = [[(1.0, matrix.score(0, task))] for task in matrix.learned_tasks]
    return mean_metric(
        terms,
        "zero-shot",
        "mean over learned tasks of a[0][j], the model before any training",
        "row 0 of the score matrix (Lopez-Paz & Ranzato 2017 use it as the baseline of FWT)",
    )


def summary(matrix: ScoreMatrix, references: Mapping[str, Score] | None = None) -> list[Metric]:
    """Compute all metrics, in a fixed order: OP, BWT, the forms of FWT and of forgetting, learning accuracy, zero-shot.

    Args:
        matrix: the scores; may be empty, then everything is undefined.
        references: as in :func:`forward_transfer_single_task`.
    """
    return [
        average_performance(matrix),
        backward_transfer(matrix),
        backward_transfer_all_rows(matrix),
        forward_transfer_single_task(matrix, references),
        forward_transfer_gem(matrix),
        forgetting_chaudhry(matrix),
        forgetting_since_learned(matrix),
        forgetting_including_last(matrix),
        learning_accuracy(matrix),
        zero_shot(matrix),
    ]


def _rows_learned(matrix: ScoreMatrix) -> list[tuple[str, int]]:
    """List learned tasks with the row right after each was learned."""
    return [(task, number) for number, row in enumerate(matrix.rows) for task in row.learned]


def _earlier(matrix: ScoreMatrix) -> list[tuple[str, int]]:
    """List tasks learned before the last row, with the row right after each was learned."""
    return [(task, row) for task, row in _rows_learned(matrix) if row < len(matrix) - 1]


def _change(matrix: ScoreMatrix, task: str, before: int, after: int) -> list[Term]:
    if before == after:
        return [(0.0, matrix.score(after, task))]
    return [(1.0, matrix.score(after, task)), (-1.0, matrix.score(before, task))]


def _drop_from_best(matrix: ScoreMatrix, task: str, rows: Iterable[int]) -> list[Term]:
    """Return the terms of the best score on ``task`` in ``rows`` minus its score in the last row."""
    candidates = [matrix.score(row, task) for row in rows]
    measured = [entry for entry in candidates if entry is not None]
    if not measured or len(measured) < len(candidates):
        return [(1.0, None)]
    best = max(measured, key=lambda entry: entry.value)
    bound = best.model_copy(update={"stderr": max(entry.stderr for entry in measured)})
    return [(1.0, bound), (-1.0, matrix.score(-1, task))]


def _known(terms: list[Term]) -> bool:
    return all(entry is not None for _, entry in terms)


def mean_metric(groups: list[list[Term]], name: str, definition: str, source: str) -> Metric:
    """Compute the mean over ``groups`` of the weighted sum within each.

    It is undefined if there is no group or an entry is missing.

    Weights of an entry that appears in several groups are added before squaring: it has one error, not several. Entries
    are distinguished by identity, since two cells of the matrix may hold equal numbers.
    """
    if not groups or not all(_known(group) for group in groups):
        return Metric(name=name, value=None, definition=definition, source=source)
    weights: defaultdict[int, float] = defaultdict(float)
    entries: dict[int, Score] = {}
    total: list[float] = []
    for weight, entry in (term for group in groups for term in group):
        if entry is not None:
            weights[id(entry)] += weight / len(groups)
            entries[id(entry)] = entry
            total.append(weight * entry.value)
    value = math.fsum(total) / len(groups)
    stderr = math.hypot(*(weight * entries[key].stderr for key, weight in weights.items()))
    return Metric(name=name, value=value, stderr=stderr, definition=definition, source=source)
