"""The score matrix: how well every task was answered before training and after every stage of learning.

Every metric of :mod:`merganser.metrics.continual` is computed from it. Entry ``a[i][j]`` is the score on the test set
of task ``j`` (a column) at row ``i``. Row 0 is measured before any training; every later row after the tasks it names
were learned: one task in a sequence, several when tasks are learned jointly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from merganser.errors import InputError, nearest
from merganser.metrics.course import since_learned
from merganser.metrics.score import Score, ScoreRow
from merganser.tables import frame, html_table, row_label, score

if TYPE_CHECKING:
    from pandas import DataFrame


class ScoreMatrix:
    """Store scores of tasks (columns) over the stages of learning (rows).

    Entries may be missing: not every task is measured at every row, and a task may become known late. A missing entry
    is ``None`` from :meth:`score` and NaN in :attr:`values`.

    Args:
        tasks: names of the columns, in order; more can follow with :meth:`add_task`.
        watched: columns of tasks that are scored and never learned -> their group (``general``, ``instruction``,
            ``safety``), or an empty string. They follow ``tasks``, and no metric over learned tasks counts them.

    Raises:
        InputError: an empty or repeated name.
    """

    def __init__(self, tasks: Iterable[str] = (), watched: Mapping[str, str] | None = None) -> None:
        self._tasks: list[str] = []
        self._rows: list[ScoreRow] = []
        if isinstance(tasks, str):
            raise InputError(f"Tasks of a score matrix are one string, '{tasks}'.", "Give a list of names.")
        self._watched = dict(watched or {})
        for name in (*tasks, *self._watched):
            self.add_task(name)

    def add_task(self, name: str) -> None:
        """Append a column; its entries in the rows so far are missing until :meth:`set` fills them.

        Raises:
            InputError: the name is empty or already a column.
        """
        if not isinstance(name, str) or not name:
            raise InputError(f"A task of the score matrix has the name {name!r}.", "Give each task a name.")
        if name in self._tasks:
            raise InputError(f"Task '{name}' is already in the score matrix.", "Give each task its own name.")
        self._tasks.append(name)

    def add_row(self, learned: Sequence[str], scores: Mapping[str, Score]) -> int:
        """Append a row and return its index.

        Args:
            learned: tasks learned since the row before, all at once if several. Empty for row 0 and only for row 0.
            scores: task -> score; a task left out is missing in this row.

        Raises:
            InputError: an unknown task, a task learned twice, a first row that learned something or a later row that
                learned nothing. The matrix is then unchanged.
        """
        row = len(self._rows)
        if isinstance(learned, str):
            raise InputError(f"Row {row}: 'learned' is one string, '{learned}'.", "Give a list of names.")
        if row == 0 and len(learned) > 0:
            raise InputError(
                f"The first row of a score matrix learned {list(learned)}.",
                "Row 0 is the state before training; add it first (without scores if nothing was measured).",
            )
        if row > 0 and len(learned) == 0:
            raise InputError(
                f"Row {row} learned no task.", f"Fill in entries measured later with set({row - 1}, task, score)."
            )
        learned_before = {name: index for index, earlier in enumerate(self._rows) for name in earlier.learned}
        for position, name in enumerate(learned):
            self._require_task(name)
            if name in self._watched:
                raise InputError(f"Row {row} learned '{name}', which is watched.", "A watched task is never learned.")
            if name in learned_before or name in learned[:position]:
                raise InputError(
                    f"Row {row}: task '{name}' was already learned in row {learned_before.get(name, row)}.",
                    "A task is learned once per matrix.",
                )
        for name in scores:
            self._require_task(name)
        # A copy per cell: metrics distinguish cells by identity, since two of them may hold equal numbers.
        self._rows.append(
            ScoreRow(learned=list(learned), scores={name: score.model_copy() for name, score in scores.items()})
        )
        return row

    def set(self, row: int, task: str, score: Score) -> None:
        """Fill in (or replace) one entry; a negative ``row`` counts from the end.

        Raises:
            InputError: no such row or task.
        """
        row = self._require_row(row)
        self._require_task(task)
        self._rows[row].scores[task] = score.model_copy()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the columns, in the order in which they were added."""
        return tuple(self._tasks)

    @property
    def learned_tasks(self) -> tuple[str, ...]:
        """Return the tasks learned so far, in the order of learning (within a joint row, as given)."""
        return tuple(name for row in self._rows for name in row.learned)

    @property
    def watched(self) -> dict[str, str]:
        """Return the watched tasks with their groups (an empty string: none)."""
        return dict(self._watched)

    @property
    def rows(self) -> tuple[ScoreRow, ...]:
        """Return copies of all rows, row 0 first; the scores of each in the order of the columns."""
        return tuple(
            ScoreRow(
                learned=list(row.learned),
                scores={name: row.scores[name] for name in self._tasks if name in row.scores},
            )
            for row in self._rows
        )

    def __len__(self) -> int:
        """Return the number of rows, row 0 included."""
        return len(self._rows)

    def score(self, row: int, task: str) -> Score | None:
        """Return the entry, or ``None`` where it is missing. A negative ``row`` counts from the end.

        Raises:
            InputError: no such row or task.
        """
        row = self._require_row(row)
        self._require_task(task)
        return self._rows[row].scores.get(task)

    @property
    def values(self) -> NDArray[np.float64]:
        """Return a copy of the mean scores, shape ``[rows, tasks]``, NaN where missing."""
        table = [
            [row.scores[name].value if name in row.scores else math.nan for name in self._tasks] for row in self._rows
        ]
        # The reshape keeps both dimensions when there is no row or no column yet.
        return np.array(table, dtype=np.float64).reshape(len(self._rows), len(self._tasks))

    def to_pandas(self) -> DataFrame:
        """Return a frame of pandas: a row per row of the matrix, a column per task, fractions, NaN where missing.

        Raises:
            InputError: pandas is not installed.
        """
        values = self.values
        columns = {task: values[:, column] for column, task in enumerate(self._tasks)}
        return frame(columns, self._labels(), "row")

    def _repr_html_(self) -> str:
        scores = [{task: entry.value for task, entry in row.scores.items()} for row in self._rows]
        changes = since_learned([(row.learned, known) for row, known in zip(self._rows, scores, strict=True)])
        rows = [
            [label, *(_cell(known.get(task), moved.get(task)) for task in self._tasks)]
            for label, known, moved in zip(self._labels(), scores, changes, strict=True)
        ]
        return html_table(["", *self._tasks], rows, note="Percent; with the change since the task was learned.")

    def _labels(self) -> list[str]:
        return [row_label(row.learned, first=number == 0) for number, row in enumerate(self._rows)]

    def _require_task(self, name: str) -> None:
        if name not in self._tasks:
            hint = nearest(str(name), self._tasks) or f"Known tasks: {', '.join(self._tasks) or 'none'}."
            raise InputError(f"Task {name!r} is not in the score matrix.", hint)

    def _require_row(self, row: int) -> int:
        if not -len(self._rows) <= row < len(self._rows):
            raise InputError(f"Row {row} is not in the score matrix.", f"It has {len(self)} rows, counted from 0.")
        return row % len(self._rows)


def _cell(value: float | None, change: float | None) -> str:
    return score(value) if change is None else f"{score(value)} ({score(change, signed=True)})"
