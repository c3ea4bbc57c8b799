"""What is computed from the rows of a run: the score matrix and ``scores.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from merganser.metrics.continual import summary
from merganser.metrics.matrix import ScoreMatrix
from merganser.metrics.retained import retained, win_rates
from merganser.metrics.score import Score
from merganser.runs.answers import RunAnswers
from merganser.runs.record import RowFile, RunInfo, RunRecord, ScoresFile, WatchedColumn
from merganser.runs.rows import Row


def score_matrix(rows: Sequence[RowFile]) -> ScoreMatrix:
    """Return the score matrix of these rows."""
    names: list[str] = [task.name for row in rows for task in row.tasks]
    watched = {task.name: task.group or "" for row in rows for task in row.watched}
    for row in rows:
        names += [name for name in row.scores.scores if name not in names and name not in watched]
    matrix = ScoreMatrix(names, watched)
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
    compared = rows[-1].against_start if rows else {}
    watched = [
        WatchedColumn(name=task.name, group=task.group, against_start=compared.get(task.name))
        for row in rows
        for task in row.watched
    ]
    metrics_of_watched = [*retained(matrix), *win_rates(matrix.watched, compared)]
    return ScoresFile(
        tasks=list(matrix.tasks),
        watched=watched,
        metrics=metrics,
        rows=list(matrix.rows),
        references=dict(references),
        summary=[*summary(matrix, references), *metrics_of_watched],
    )


def run_record(path: str, info: RunInfo, rows: Sequence[Row], scores: ScoresFile) -> RunRecord:
    """Return everything that a report needs.

    Raises:
        InputError: a file of the run is damaged.
    """
    record = RunRecord(
        path=path,
        info=info,
        tasks=[task for row in rows for task in row.file.tasks],
        scores=scores,
        merges=[merge for row in rows for merge in row.merges],
        # Tasks learned together share one training; its signals are kept under the name of the first.
        signals={row.file.tasks[0].name: row.signals() for row in rows if row.file.tasks},
    )
    return record.compare_by(RunAnswers(rows))
