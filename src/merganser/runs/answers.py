"""The kept answers of a run, and the changes between them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from merganser.errors import InputError
from merganser.metrics.paired import PairedChange, paired_change
from merganser.runs.record import Against, KeptAnswers, RunRecord
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
            self._known = {(kept.row, kept.task): kept for row in self._rows for kept in row.answers()}
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


class RunAnswers:
    """The rows of a run with the answers kept in them: called, it compares those of the last row with earlier ones."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)  # as they are now, whatever is learned later
        self._answers: weakref.ref[AnswersOfRows] | None = None

    @property
    def answers(self) -> AnswersOfRows:
        """The answers, which are read once for as long as somebody holds them."""
        known = None if self._answers is None else self._answers()
        if known is None:
            known = AnswersOfRows(self.rows)
            self._answers = weakref.ref(known)
        return known

    def __call__(self, against: Against) -> dict[str, PairedChange]:
        """Compare the answers of the last row with earlier ones, task by task.

        Args:
            against: ``learned``: each task with the row right after it was learned, a watched one with the row before
                any training; ``previous``: with the row before.

        Returns:
            The change of each task that was learned before the last row, and of each watched one, with its 95 %
            interval; a task whose answers were not kept has none.
        """
        last, answers, changes = len(self.rows) - 1, self.answers, {}
        learned = [(task.name, number) for number, row in enumerate(self.rows[:-1]) for task in row.file.tasks]
        watched = [(task.name, 0) for row in self.rows for task in row.file.watched if last > 0]
        for task, number in [*learned, *watched]:
            before = answers.find(task, number if against == "learned" else last - 1)
            after = answers.find(task, last)
            if before is not None and after is not None and task in self.rows[last].file.scores.scores:
                changes[task] = paired_change(before.scores, after.scores)
        return changes


def answers_of(run: RunRecord) -> RunAnswers:
    """Return the rows and answers of a run that was read from its directory; of another record, none."""
    return run.comparer if isinstance(run.comparer, RunAnswers) else RunAnswers(())
