"""The kept answers of a run, and the changes between them."""

from __future__ import annotations

from collections.abc import Sequence

from merganser.errors import InputError
from merganser.metrics.paired import PairedChange, paired_change
from merganser.runs.record import Against, KeptAnswers
from merganser.runs.rows import Row


class NothingToCompareError(InputError):
    """There is no earlier task, or its answers were not kept."""


class AnswersOfRows:
    """The answers of a run by row and task, read when they are first asked for."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._known: dict[tuple[int, str], KeptAnswers] | None = None

    def find(self, task: str, row: int) -> KeptAnswers | None:
        """Return the answers that the weights of a row gave; a task whose weights did not change has earlier ones.

        ``None``: none were kept.
        """
        if self._known is None:
            # What is new in a later row was answered with the weights of earlier ones as well.
            self._known = {(kept.row, kept.task): kept for each in self._rows for kept in each.answers()}
        for number in range(row, -1, -1):
            if (number, task) in self._known:
                return self._known[number, task]
        return None

    def of(self, task: str, row: int) -> KeptAnswers:
        """Return the answers that the weights of a row gave, as :meth:`find`.

        Raises:
            NothingToCompareError: none were kept.
        """
        if (kept := self.find(task, row)) is not None:
            return kept
        raise NothingToCompareError(
            f"The answers to the test examples of '{task}' in row '{self._rows[row].folder.name}' were not kept.",
            "Runs with evaluation.keep_answers: true (the default) keep them.",
        )


def changes_to_last(rows: Sequence[Row], against: Against) -> dict[str, PairedChange]:
    """Compare the answers of the last row with earlier ones, task by task.

    Args:
        rows: of the run, the one before training first.
        against: ``learned``: each task with the row right after it was learned; ``previous``: with the row before.

    Returns:
        The change of each task that was learned before the last row, with its 95 % interval; a task whose answers were
        not kept has none.
    """
    last, answers, changes = len(rows) - 1, AnswersOfRows(rows), {}
    for number, row in enumerate(rows[:-1]):
        for task in row.file.tasks:
            before = answers.find(task.name, number if against == "learned" else last - 1)
            after = answers.find(task.name, last)
            if before is not None and after is not None and task.name in rows[last].file.scores.scores:
                changes[task.name] = paired_change(before.scores, after.scores)
    return changes
