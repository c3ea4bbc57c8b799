"""The score matrix of each method, as the mean over seeds, order by order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from merganser.study.cell_record import CellRecord
from merganser.study.results import StreamResult
from merganser.study.statistics import mean_of


@dataclass(frozen=True)
class MeanMatrix:
    """Mean scores of one method in one order, a line per task and a column per round.

    Attributes:
        method: its label.
        order: of the tasks.
        tasks: lines, in order of learning.
        rounds: tasks learned in each round; none in the one before training.
        values: fractions, ``[task][round]``; ``None`` where a run did not measure it.
        learned: task -> round in which it was learned.
        seeds: over how many runs.
    """

    method: str
    order: str
    tasks: tuple[str, ...]
    rounds: tuple[tuple[str, ...], ...]
    values: tuple[tuple[float | None, ...], ...]
    learned: Mapping[str, int]
    seeds: int


def mean_matrices(result: StreamResult) -> dict[str, list[MeanMatrix]]:
    """Return order -> the matrix of each method that has runs in it, best method first."""
    matrices: dict[str, list[MeanMatrix]] = {}
    for order in result.orders:
        for method in result.methods:
            cells = [cell for cell in method.cells if cell.order == order]
            if cells:
                matrices.setdefault(order, []).append(_mean_matrix(method.label, order, cells))
    return matrices


def _mean_matrix(method: str, order: str, cells: Sequence[CellRecord]) -> MeanMatrix:
    first = cells[0]
    same_rows = [cell for cell in cells if [row.learned for row in cell.rows] == [row.learned for row in first.rows]]
    return MeanMatrix(
        method=method,
        order=order,
        tasks=tuple(first.tasks),
        rounds=tuple(tuple(row.learned) for row in first.rows),
        values=tuple(
            tuple(_mean(same_rows, task, number) for number in range(len(first.rows))) for task in first.tasks
        ),
        learned={task: number for number, row in enumerate(first.rows) for task in row.learned},
        seeds=len(same_rows),
    )


def _mean(cells: Sequence[CellRecord], task: str, row: int) -> float | None:
    scores = [cell.rows[row].scores.get(task) for cell in cells]
    return mean_of([None if score is None else score.value for score in scores])
