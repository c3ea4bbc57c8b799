"""The result of a run as one JSON document, for programs (``merganser run --json``, ``learn --json``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merganser.metrics.score import Score
from merganser.runs.record import RunRecord


def run_result(record: RunRecord, page: Path | None = None) -> dict[str, Any]:
    """Return what a run has learned, kept and lost; scores and changes are fractions.

    Args:
        record: of the run.
        page: its report.

    Returns:
        ``tasks`` has an entry per learned task with its score before any training, right after it was learned, and
        now (``null``: not measured); ``change`` is ``now - learned``. ``watched`` has one per watched task, where
        ``change`` is ``now - before``. ``matrix`` has an entry per row of the score matrix, ``metrics`` the metrics
        with their definitions.
    """
    scores = record.scores
    last = max(record.tasks, key=lambda task: task.index, default=None)
    return {
        "run": record.path,
        "page": None if page is None else str(page),
        "method": record.info.config["method"]["name"],
        "model": record.info.config["model"]["name"],
        "seed": record.info.seed,
        "tasks": [
            {
                "task": task.name,
                "row": task.row,
                "metric": scores.metrics.get(task.name),
                **_course(record, task.name, task.row, "learned"),
            }
            for task in record.tasks
        ],
        "watched": [
            {
                "task": task.name,
                "group": task.group,
                "metric": scores.metrics.get(task.name),
                "against_start": None if task.against_start is None else task.against_start.model_dump(),
                **_course(record, task.name, 0, "before"),
            }
            for task in scores.watched
        ],
        "matrix": [
            {"learned": row.learned, "scores": {name: score.value for name, score in row.scores.items()}}
            for row in scores.rows
        ],
        "metrics": [metric.model_dump() for metric in scores.summary],
        "stored_bytes": {} if last is None else last.method_bytes,
        "seconds": sum(task.cost.seconds for task in record.tasks),
    }


def _course(record: RunRecord, task: str, row: int, name: str) -> dict[str, Any]:
    """Return the scores of a task before training, in ``row`` (under ``name``) and now, and the change between them."""
    rows = record.scores.rows
    before, then, now = (rows[number].scores.get(task) for number in (0, row, -1))
    return {
        "before": _value(before),
        name: _value(then),
        "now": _value(now),
        "change": None if then is None or now is None else now.value - then.value,
        "stderr": None if now is None else now.stderr,
        "examples": None if now is None else now.n,
    }


def _value(score: Score | None) -> float | None:
    return None if score is None else score.value
