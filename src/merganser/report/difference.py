"""Compare two rows of a run: scores, the answers that changed, and how far the weights are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from merganser.metrics.paired import PairedChange, holm, paired_change
from merganser.report.changed_answers import Flip, flips, tests_of
from merganser.report.weight_distance import Distance, weight_distances
from merganser.runs import RunDirectory
from merganser.runs.answers import AnswersOfRows
from merganser.runs.rows import Row
from merganser.settings import CONFIDENCE


@dataclass(frozen=True)
class TaskDifference:
    """What became of one task.

    Attributes:
        before, after: scores; ``None``: not scored in this row.
        paired: the change over the same examples; ``None`` where answers were not kept.
        p: of no change, corrected for the number of tasks (Holm).
        flips: examples whose score changed, the largest losses first.
    """

    task: str
    before: float | None
    after: float | None
    paired: PairedChange | None = None
    p: float | None = None
    flips: list[Flip] = field(default_factory=list)

    @property
    def change(self) -> float | None:
        """The change of the score."""
        return None if self.before is None or self.after is None else self.after - self.before


@dataclass(frozen=True)
class Difference:
    """What :func:`difference` found.

    Attributes:
        run: its directory.
        before, after: folders of the two rows.
        tasks: those that were scored in either.
        weights: the distance of all weights, then of each block; none where weights were removed.
        removed: folders of rows whose weights were removed.
    """

    run: str
    before: str
    after: str
    tasks: list[TaskDifference]
    weights: list[Distance]
    removed: list[str]

    def as_dict(self, most: int | None = None) -> dict[str, Any]:
        """Convert to a dict for JSON; scores and changes are fractions.

        Args:
            most: examples per task; ``None``: all.
        """
        tasks = []
        for task in self.tasks:
            values: dict[str, Any] = {"task": task.task, "before": task.before, "after": task.after}
            values["change"] = task.change
            if task.paired is not None:
                paired = task.paired
                values |= {"low": paired.low, "high": paired.high, "p": task.p}
                values |= {"became_wrong": paired.lost, "became_right": paired.gained}
                values["flips"] = [asdict(flip) for flip in chosen_flips(task, most)]
            tasks.append(values)
        return {
            "run": self.run,
            "before": self.before,
            "after": self.after,
            "tasks": tasks,
            "weights": [asdict(distance) | {"relative": distance.relative} for distance in self.weights],
            "weights_removed": self.removed,
        }


def chosen_flips(task: TaskDifference, most: int | None) -> list[Flip]:
    """Return at most so many examples of a task: losses first, and half of the places for gains where there are any."""
    if most is None:
        return task.flips
    lost = [flip for flip in task.flips if flip.change < 0]
    gained = [flip for flip in reversed(task.flips) if flip.change > 0]
    places = max(most - len(gained), (most + 1) // 2)
    shown = lost[:places]
    return [*shown, *gained[: most - len(shown)]]


def difference(directory: RunDirectory, before: str, after: str, confidence: float = CONFIDENCE) -> Difference:
    """Compare two rows of a run.

    Args:
        before, after: tasks, tags, or folders under ``tasks/``.
        confidence: of the intervals.

    Raises:
        InputError: there is no such row, or a file of it is damaged.
    """
    first, second = directory.find(before), directory.find(after)
    reader, tests = AnswersOfRows(directory.rows), tests_of(directory.rows)
    matrix = directory.matrix()  # with scores that were taken later
    compared = []
    for name in matrix.tasks:
        scores = [matrix.score(row.file.row, name) for row in (first, second)]
        values = [None if entry is None else entry.value for entry in scores]
        if values == [None, None]:
            continue
        paired, changed = None, []
        old, new = (reader.find(name, row.file.row) for row in (first, second))
        if None not in values and old is not None and new is not None:
            paired = paired_change(old.scores, new.scores, confidence)
            changed = flips(old, new, tests.get(name, ()))
        compared.append(TaskDifference(name, values[0], values[1], paired, None, changed))
    removed = [row.folder.name for row in (first, second) if not row.has_weights]
    return Difference(
        run=str(directory.path),
        before=first.folder.name,
        after=second.folder.name,
        tasks=_corrected(compared),
        weights=[] if removed else _distances(first, second),
        removed=removed,
    )


def _corrected(tasks: Sequence[TaskDifference]) -> list[TaskDifference]:
    values = iter(holm([task.paired.p for task in tasks if task.paired is not None]))
    return [
        task
        if task.paired is None
        else TaskDifference(task.task, task.before, task.after, task.paired, next(values), task.flips)
        for task in tasks
    ]


def _distances(first: Row, second: Row) -> list[Distance]:
    return weight_distances(first.checked("adapter"), second.checked("adapter"))
