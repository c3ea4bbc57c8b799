"""The score matrix: how well every task was answered before training and after every stage of learning.

Every metric of :mod:`merganser.metrics.continual` is computed from it. Entry ``a[i][j]`` is the score on the test set
of task ``j`` (a column) at row ``i``. Row 0 is measured before any training; every later row after the tasks it names
were learned: one task in a sequence, several when tasks are learned jointly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from merganser.errors import InputError, nearest

ScoreTuple = tuple[float, int, float]
"""``(value, n, stderr)``; an :class:`Entry` is one."""


class Entry(NamedTuple):
    """One measured score.

    Attributes:
        value: mean score over the test examples, in [0, 1].
        n: number of test examples.
        stderr: standard error of ``value`` over the test examples, same unit.
    """

    value: float
    n: int
    stderr: float


def checked_entry(score: Sequence[float], where: str) -> Entry:
    """``score`` as an :class:`Entry` of plain Python numbers.

    Args:
        score: ``(value, n, stderr)``.
        where: what is being read, for the error ("row 2, task 'agnews'").

    Raises:
        InputError: not three numbers; value outside [0, 1] or not finite; n not a positive integer; stderr negative or
            not finite.
    """
    if not isinstance(score, Sequence) or isinstance(score, str) or len(score) != 3:
        raise InputError(f"{where}: expected (value, n, stderr), got {score!r}.", "Give all three numbers.")
    value, n, stderr = score
    for name, number in (("value", value), ("n", n), ("stderr", stderr)):
        if isinstance(number, bool) or not isinstance(number, Real):
            raise InputError(f"{where}: {name} is {number!r}, not a number.", "Give (value, n, stderr) as numbers.")
    if not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise InputError(
            f"{where}: score {float(value)} is not in [0, 1].",
            "Scores are shares, not percent; leave out an entry that was not measured.",
        )
    if not isinstance(n, Integral) or n < 1:
        raise InputError(f"{where}: n is {n}.", "n is the number of test examples, a whole number of at least 1.")
    if not math.isfinite(stderr) or stderr < 0.0:
        raise InputError(f"{where}: standard error {float(stderr)}.", "A standard error is finite and not negative.")
    return Entry(float(value), int(n), float(stderr))


class ScoreMatrix:
    """Scores of tasks (columns) over the stages of learning (rows), with test counts and standard errors.

    Entries may be missing: not every task is measured at every row, and a task may become known late. A missing entry
    is NaN in :attr:`values` and :attr:`stderrs`, 0 in :attr:`counts`, ``None`` from :meth:`entry`.

    Args:
        tasks: names of the columns, in order; more can follow with :meth:`add_task`.

    Raises:
        InputError: an empty or repeated name.
    """

    def __init__(self, tasks: Iterable[str] = ()) -> None:
        self._tasks: list[str] = []
        self._learned: list[tuple[str, ...]] = []
        self._scores: list[dict[str, Entry]] = []
        self._row_learned: dict[str, int] = {}
        if isinstance(tasks, str):
            raise InputError(f"Tasks of a score matrix are one string, '{tasks}'.", "Give a list of names.")
        for name in tasks:
            self.add_task(name)

    def add_task(self, name: str) -> None:
        """Append a column; its entries in the rows so far are missing until :meth:`set` fills them.

        Raises:
            InputError: the name is empty or already a column.
        """
        if not isinstance(name, str) or not name:
            raise InputError(f"Task name {name!r} in a score matrix.", "Give each task a name.")
        if name in self._tasks:
            raise InputError(f"Task '{name}' is already in the score matrix.", "Give each task a name of its own.")
        self._tasks.append(name)

    def add_row(self, learned: Sequence[str], scores: Mapping[str, ScoreTuple]) -> int:
        """Append a row and return its index.

        Args:
            learned: tasks learned since the row before, all at once if several. Empty for row 0 and only for row 0.
            scores: task -> ``(value, n, stderr)``; a task left out is missing in this row.

        Raises:
            InputError: an unknown task, a task learned twice, an impossible score (:func:`checked_entry`), a first row
                that learned something or a later row that learned nothing. The matrix is then unchanged.
        """
        row = len(self._scores)
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
        for position, name in enumerate(learned):
            self._require_task(name)
            if name in self._row_learned or name in learned[:position]:
                before = self._row_learned.get(name, row)
                raise InputError(
                    f"Row {row}: task '{name}' was already learned in row {before}.",
                    "A task is learned once per matrix.",
                )
        entries: dict[str, Entry] = {}
        for name, score in scores.items():
            self._require_task(name)
            entries[name] = checked_entry(score, f"Row {row}, task '{name}'")
        self._learned.append(tuple(learned))
        self._scores.append(entries)
        self._row_learned.update(dict.fromkeys(learned, row))
        return row

    def set(self, row: int, task: str, score: ScoreTuple) -> None:
        """Fill in (or replace) one entry, ``score = (value, n, stderr)``; a negative ``row`` counts from the end.

        Raises:
            InputError: no such row or task, or an impossible score.
        """
        row = self._require_row(row)
        self._require_task(task)
        self._scores[row][task] = checked_entry(score, f"Row {row}, task '{task}'")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Columns, in the order in which they were added."""
        return tuple(self._tasks)

    @property
    def learned_tasks(self) -> tuple[str, ...]:
        """Tasks learned so far, in the order of learning (within a joint row, as given)."""
        return tuple(name for names in self._learned for name in names)

    @property
    def rows(self) -> int:
        """Number of rows, row 0 included."""
        return len(self._scores)

    def learned(self, row: int) -> tuple[str, ...]:
        """Tasks learned between the row before and ``row``."""
        return self._learned[self._require_row(row)]

    def row_learned(self, task: str) -> int | None:
        """The row measured right after ``task`` was learned; ``None`` while it has not been learned.

        Raises:
            InputError: unknown task.
        """
        self._require_task(task)
        return self._row_learned.get(task)

    def entry(self, row: int, task: str) -> Entry | None:
        """The entry, or ``None`` where it is missing. A negative ``row`` counts from the end.

        Raises:
            InputError: no such row or task.
        """
        row = self._require_row(row)
        self._require_task(task)
        return self._scores[row].get(task)

    def value(self, row: int, task: str) -> float:
        """The mean score, or NaN where it is missing. Raises as :meth:`entry`."""
        entry = self.entry(row, task)
        return math.nan if entry is None else entry.value

    @property
    def values(self) -> NDArray[np.float64]:
        """Mean scores, shape ``[rows, tasks]``, NaN where missing; a copy."""
        return self._array(lambda entry: entry.value, math.nan)

    @property
    def stderrs(self) -> NDArray[np.float64]:
        """Standard errors, shape ``[rows, tasks]``, NaN where missing; a copy."""
        return self._array(lambda entry: entry.stderr, math.nan)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Test examples, shape ``[rows, tasks]``, 0 where missing; a copy."""
        return self._array(lambda entry: entry.n, 0).astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """``{"tasks": [...], "rows": [{"learned": [...], "scores": {task: {"value", "n", "stderr"}}}]}``, for JSON."""
        return {
            "tasks": list(self._tasks),
            "rows": [
                {
                    "learned": list(names),
                    "scores": {name: entries[name]._asdict() for name in self._tasks if name in entries},
                }
                for names, entries in zip(self._learned, self._scores, strict=True)
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ScoreMatrix:
        """The matrix described by ``data`` in the form of :meth:`to_dict`; other keys beside those two are ignored.

        Raises:
            InputError: a key is missing or of the wrong form, or anything :meth:`add_row` refuses.
        """
        try:
            tasks, rows = list(data["tasks"]), list(data["rows"])
        except (KeyError, TypeError) as error:
            raise InputError(f"A score matrix without {error}.", "It needs the lists 'tasks' and 'rows'.") from error
        matrix = cls(tasks)
        for index, row in enumerate(rows):
            try:
                learned = list(row["learned"])
                scores = {name: (s["value"], s["n"], s["stderr"]) for name, s in row["scores"].items()}
            except (KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    f"Row {index} of a score matrix is damaged ({error!r}).",
                    "A row is {'learned': [...], 'scores': {task: {'value': ..., 'n': ..., 'stderr': ...}}}.",
                ) from error
            matrix.add_row(learned, scores)
        return matrix

    def _array(self, pick: Any, missing: float) -> NDArray[np.float64]:
        table = [[missing if name not in row else pick(row[name]) for name in self._tasks] for row in self._scores]
        # The reshape keeps both dimensions when there is no row or no column yet.
        return np.array(table, dtype=np.float64).reshape(len(self._scores), len(self._tasks))

    def _require_task(self, name: str) -> None:
        if name not in self._tasks:
            hint = nearest(str(name), self._tasks) or f"Known tasks: {', '.join(self._tasks) or 'none'}."
            raise InputError(f"Task {name!r} is not in the score matrix.", hint)

    def _require_row(self, row: int) -> int:
        if not -len(self._scores) <= row < len(self._scores):
            raise InputError(
                f"Row {row} is not in the score matrix.", f"It has {len(self._scores)} rows, counted from 0."
            )
        return row % len(self._scores)
