"""What is computed from the rows of a run: the score matrix and ``scores.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from merganser.metrics.continual import summary
from merganser.metrics.matrix import ScoreMatrix
from merganser.metrics.score import Score
from merganser.runs.record import RowFile, ScoresFile


def score_matrix(rows: Sequence[RowFile]) -> ScoreMatrix:
    """Return the score matrix of these rows."""
    names: list[str] = [task.name for row in rows for task in row.tasks]
    for row in rows:
        names += [name for name in row.scores.scores if name not in names]
    matrix = ScoreMatrix(names)
    for row in rows:
        matrix.add_row(row.scores.learned, row.scores.scores)
    for row in rows:
        for number, scores in row.earlier.items():
            for name, score in scores.items():
                matrix.set(number, name, score)
    return matrix


def scores_file(rows: Sequence[RowFile], references: Mapping[str, Score]) -> ScoresFile:
    """Return the whole matrix with its summary.

    Args:
        references: scores of single-task models, as far as they were measured.
    """
    matrix = score_matrix(rows)
    metrics: dict[str, str] = {}
    for row in rows:
        metrics.update(row.metrics)
    return ScoresFile(
        tasks=list(matrix.tasks),
        metrics=metrics,
        rows=list(matrix.rows),
        references=dict(references),
        summary=summary(matrix, references),
    )
