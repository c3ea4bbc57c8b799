"""The score matrix as the page shows it: a row per task, a column per round, and what each task lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from merganser.metrics.course import TaskCourse
from merganser.metrics.score import Score
from merganser.report.formatting import MISSING, finite, row_label, score
from merganser.report.overview import SIGNS
from merganser.report.sections import metric_label, watched_marks
from merganser.report.series import learned_before, rows_learned
from merganser.report.verdict import noise
from merganser.runs.record import RunRecord

FULL_SCALE = 0.25
"""Change at which the diverging scale of the matrix is at its strongest."""


def _cell(entry: Score | None, learned: Score | None, state: str) -> dict[str, Any]:
    """Return a cell of the matrix: ``state`` is ``own``, ``future`` (not learned yet) or empty (learned before)."""
    cell = {"text": MISSING, "class": state, "depth": ""}
    if entry is None or finite(entry.value) is None:
        return cell
    cell["text"] = score(entry.value)
    if state == "" and learned is not None and round(change := entry.value - learned.value, 3):
        cell["class"] = "loss" if change < 0 else "gain"
        cell["depth"] = f"{min(1.0, abs(change) / FULL_SCALE):.2f}"
    return cell


def _course_cells(run: RunRecord, task: str, row: int | None) -> list[dict[str, Any]]:
    rows = run.scores.rows
    learned = rows[row].scores.get(task) if row is not None and row < len(rows) else None
    return [
        _cell(
            evaluated.scores.get(task),
            learned,
            "own" if number == row else "future" if row is None or number < row else "",
        )
        for number, evaluated in enumerate(rows)
    ]


def matrix(
    run: RunRecord, tasks: Sequence[TaskCourse], baselines: Sequence[RunRecord], names: Sequence[str]
) -> dict[str, Any]:
    """Tabulate the score matrix, one row per task and one column per evaluation.

    Beside it the change since the task was learned and, where measured, the baselines' last scores and that of a model
    that learned the task alone.

    Args:
        run: the run.
        tasks: what became of its tasks.
        baselines: the runs beside it.
        names: of the baselines.
    """
    courses = {course.task: course for course in tasks}
    marks = watched_marks(run)
    row_of = {**rows_learned(run), **dict.fromkeys(marks, 0)}
    columns = [
        {"number": str(number), "label": row_label(row.learned, first=learned == 0), "title": ", ".join(row.learned)}
        for number, (row, learned) in enumerate(zip(run.scores.rows, learned_before(run), strict=True))
    ]
    extra = [f"{name}, now" for name in names] + (["learned alone"] if run.scores.references else [])
    rows = []
    for task in run.scores.tasks:
        course = courses.get(task)
        floor = None if course is None else noise(course)
        beside = [other.scores.rows[-1].scores.get(task) if other.scores.rows else None for other in baselines]
        if run.scores.references:
            beside.append(run.scores.references.get(task))
        count = max((row.scores[task].n for row in run.scores.rows if task in row.scores), default=0)
        word = "" if course is None else course.word
        rows.append(
            {
                "task": task,
                "mark": marks.get(task, ""),
                "metric": metric_label(run.scores.metrics.get(task, "")),
                "n": f"{count:,}" if count else "",
                "change": "" if course is None or course.change is None else score(course.change, signed=True),
                "interval": "" if course is None else course.interval,
                "word": word,
                "sign": SIGNS[word],
                "noise": MISSING if floor is None or word in ("new", "") else score(floor),
                "cells": _course_cells(run, task, row_of.get(task)),
                "extra": [score(entry.value) if entry is not None else MISSING for entry in beside],
            }
        )
    return {"columns": columns, "extra": extra, "rows": rows}
