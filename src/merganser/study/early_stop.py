"""Stop cells that are far behind: a rule that is asked for, and that every cell it stops is marked with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from merganser.errors import InputError, MerganserError
from merganser.metrics.score import ScoreRow
from merganser.runs.directory import RunDirectory
from merganser.study.cells import Cell, Study
from merganser.study.folder import StudyFolder
from merganser.study.launched import needs_launcher

FIRST = 2
"""Tasks that a cell learns before the rule looks at it: after one, nothing can have been forgotten."""


class EarlyStop:
    """Stop a cell whose mean score over the tasks learned is far below the best other method's after as many tasks.

    Compared are cells of the same stream, order and seed, as far as they have come.

    Args:
        points: how far, in percentage points.

    Raises:
        InputError: no positive number, or cells of several processes.
    """

    def __init__(self, study: Study, folder: StudyFolder, points: float) -> None:
        if not 0 < points <= 100:
            raise InputError(f"--early-stop is {points:g} points.", "Give a number of percentage points, such as 10.")
        if needs_launcher(study):
            raise InputError("--early-stop is for cells of one process.", "Leave it out, or use processes: 1.")
        self.study = study
        self.folder = folder
        self.points = points
        self._learned: dict[str, list[str]] = {}

    def reason(self, cell: Cell, learned: Sequence[str], scores: Mapping[str, float]) -> str | None:
        """Return why a cell is stopped after a row; ``None``: it goes on.

        Args:
            learned: tasks learned in the row.
            scores: of every known task after it.
        """
        names = self._learned.setdefault(cell.name, self._before(cell))
        names += [task for task in learned if task not in names]
        if len(names) < FIRST:
            return None
        here = _mean(names, scores)
        others = [
            (mean, other.name)
            for other in self.study.runs
            if other.method != cell.method and _comparable(cell, other) and not other.joint
            if (mean := self._after(other, names)) is not None
        ]
        if here is None or not others:
            return None
        best, name = max(others)
        if 100 * (best - here) <= self.points:
            return None
        rival = f"{name} had {100 * best:.1f} %"
        return f"early-stop {self.points:g}: {100 * here:.1f} % after {len(names)} tasks, and {rival}"

    def _before(self, cell: Cell) -> list[str]:
        return [task for row in self._rows(cell) for task in row.learned]

    def _after(self, cell: Cell, names: Sequence[str]) -> float | None:
        """Return the mean score of a cell over tasks, right after it had learned exactly these.

        ``None``: it is not as far, or the run of its name was made otherwise or is damaged, as its own process reports.
        """
        seen: list[str] = []
        try:
            rows = [] if self.folder.status(cell).stage == "changed" else self._rows(cell)
        except MerganserError:
            return None
        for row in rows:
            seen += row.learned
            if len(seen) == len(names):
                values = {task: score.value for task, score in row.scores.items()}
                return _mean(names, values) if set(seen) == set(names) else None
        return None

    def _rows(self, cell: Cell) -> Sequence[ScoreRow]:
        path = self.folder.run(cell)
        if not RunDirectory.exists(path):
            return []
        directory = RunDirectory.open(path)
        return directory.scores().rows if directory.rows else []


def _comparable(cell: Cell, other: Cell) -> bool:
    return (other.stream.stream, other.stream.order, other.seed) == (cell.stream.stream, cell.stream.order, cell.seed)


def _mean(names: Sequence[str], scores: Mapping[str, float]) -> float | None:
    values = [scores[name] for name in names if name in scores]
    return sum(values) / len(values) if values else None
