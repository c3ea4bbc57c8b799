"""The retention check: what the tasks of a run gained and lost, example by example, and whether to keep it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from merganser.errors import InputError, nearest
from merganser.files.temporary_names import PARTIAL
from merganser.metrics.paired import PairedChange, noise_floor, paired_change
from merganser.metrics.retention import Bounds, TaskVerdict, Verdict, judge
from merganser.report.changed_answers import tests_of
from merganser.report.formatting import MISSING, p_value, plural, score
from merganser.runs import RunDirectory
from merganser.runs.answers import AnswersOfRows, NothingToCompareError
from merganser.runs.record import KeptAnswers
from merganser.runs.rows import Row
from merganser.runs.summary import score_matrix
from merganser.streams.task import Task
from merganser.tables import interval

Against = Literal["previous", "best"]
"""Row that a task is compared with: the one before, or the one in which the task scored best."""


@dataclass(frozen=True)
class Check:
    """What :func:`check_row` found.

    Attributes:
        run, row: directory of the run, and the folder of the row that is judged.
        against: what it is compared with, in words.
        verdict: of all tasks together.
        tasks: the verdict on each.
        floors: task -> smallest change that could be told from none.
        compared: task -> folder of the row that it is compared with.
        bounds: what was allowed.
        watched: tasks that are watched -> their group, or an empty string.
    """

    run: str
    row: str
    against: str
    verdict: Verdict
    tasks: list[TaskVerdict]
    floors: dict[str, float] = field(default_factory=dict)
    compared: dict[str, str] = field(default_factory=dict)
    bounds: Bounds = field(default_factory=Bounds)
    watched: dict[str, str] = field(default_factory=dict)

    def sentence(self) -> str:
        """Say the verdict with its reason."""
        changed = [task for task in self.tasks if task.change is not None]
        worst = min(changed, key=lambda task: task.change.change if task.change else 0.0, default=None)
        failed = [task for task in self.tasks if task.verdict is Verdict.DROP]
        if failed:
            reason = "; ".join(_reason(task) for task in failed)
        elif self.verdict is Verdict.UNCLEAR:
            reason = "; ".join(_open_question(task) for task in self.tasks if task.verdict is Verdict.UNCLEAR)
        elif worst is not None and worst.change is not None and worst.change.change < 0:
            reason = f"most lost: {worst.task} {score(worst.change.change, signed=True)} points, within the bound"
        else:
            reason = "nothing was lost"
        return f"{self.verdict.value.capitalize()}: {reason}."

    def as_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON; scores and changes are fractions."""
        return {
            "run": self.run,
            "row": self.row,
            "against": self.against,
            "verdict": self.verdict.value,
            "confidence": self.bounds.confidence,
            "tasks": [self._task_dict(task) for task in self.tasks],
        }

    def _task_dict(self, task: TaskVerdict) -> dict[str, Any]:
        content: dict[str, Any] = {
            "task": task.task,
            "watched": task.task in self.watched,
            "group": self.watched.get(task.task) or None,
            "verdict": task.verdict.value,
            "score": task.score.value,
            "examples": task.score.n,
            "bound": task.bound,
            "examples_needed": task.needed,
        }
        if (change := task.change) is not None:
            content |= {
                "compared_with": self.compared[task.task],
                "before": change.before,
                "change": change.change,
                "low": change.low,
                "high": change.high,
                "p": task.p,
                "became_wrong": change.lost,
                "became_right": change.gained,
                "noise_floor": self.floors[task.task],
            }
        return content


def check_row(
    directory: RunDirectory,
    *,
    row: str | None = None,
    against: Against = "previous",
    other: RunDirectory | None = None,
    bounds: Bounds | None = None,
    rows: Sequence[Row] | None = None,
    answers: AnswersOfRows | None = None,
) -> Check:
    """Compare a row of a run with an earlier one, or with the last row of another run, example by example.

    Learned tasks are compared, and watched ones.

    Args:
        row: folder under ``tasks/``, a task that was learned in it, or a tag; by default the last.
        against: row of the same run that each task is compared with.
        other: another run with the same test examples, instead.
        bounds: what may be lost; the name of a group in ``max_drop_of`` stands for its watched tasks.
        rows: of the run, where the last one does not count yet.
        answers: of the run, where several of its rows are checked.

    Raises:
        InputError: no such row, nothing to compare, answers that were not kept, or other test examples.
    """
    rows = directory.rows if rows is None else rows
    number = len(rows) - 1 if row is None else directory.find(row).file.row
    if number == 0:
        raise InputError(f"'{rows[0].folder.name}' is the row before any training.", "Name a row with a task.")
    answers = answers or AnswersOfRows(rows)
    current = rows[number]
    new_tasks = [task.name for task in current.file.tasks]
    watched = watched_in(rows[: number + 1])
    earlier = [*(task.name for before in rows[:number] for task in before.file.tasks), *watched]
    bounds = _for_tasks(bounds or Bounds(), [*earlier, *new_tasks], watched)
    if other is None:
        judged = [name for name in earlier if name in current.file.scores.scores]
        befores = {name: _reference(rows, answers, name, number, against) for name in judged}
        words = "the row before" if against == "previous" else "the best row of each task"
        foreign = answers
    else:
        theirs = other.rows
        foreign = AnswersOfRows(theirs)
        known = {task.name for before in theirs for task in before.file.tasks} | watched_in(theirs).keys()
        judged = [name for name in [*earlier, *new_tasks] if name in known and name in current.file.scores.scores]
        if not judged:
            raise InputError(f"'{directory.path}' and '{other.path}' have no task in common.", "Name another run.")
        _check_tests(rows, theirs, judged)
        befores = dict.fromkeys(judged, len(theirs) - 1)
        words = f"{other.path} after {theirs[-1].folder.name}"
    level = bounds.confidence
    changes = {name: _change(foreign.of(name, befores[name]), answers.of(name, number), level) for name in judged}
    scores = current.file.scores.scores
    fresh = [name for name in new_tasks if name in scores and name not in changes]
    _refuse_uncompared(bounds, changes)
    if not changes and bounds.min_new is None:
        raise NothingToCompareError(
            f"'{current.folder.name}' has no earlier task to compare.", "Learn a second task, or give --min-new."
        )
    verdict, tasks = judge(changes, scores, fresh, bounds)
    folders = rows if other is None else other.rows
    return Check(
        run=str(directory.path),
        row=current.folder.name.removesuffix(PARTIAL),
        against=words,
        verdict=verdict,
        tasks=tasks,
        floors={name: noise_floor(change, bounds.confidence) for name, change in changes.items()},
        compared={name: folders[befores[name]].folder.name for name in changes},
        bounds=bounds,
        watched=watched,
    )


def watched_in(rows: Sequence[Row]) -> dict[str, str]:
    """Return the tasks that are watched up to the last of these rows -> their group, or an empty string."""
    return {task.name: task.group or "" for row in rows for task in row.file.watched}


def require_comparable(rows: Sequence[Row], new: Sequence[Task], watched: Mapping[str, str], bounds: Bounds) -> None:
    """Refuse, before any work, to check a row that :func:`check_row` could not judge.

    Args:
        rows: of the run so far.
        new: the tasks to learn in the row.
        watched: the watched tasks -> their group, or an empty string.
        bounds: as for :func:`check_row`.

    Raises:
        InputError: nothing to compare, ``max_drop_of`` of an unknown task, or ``min_new`` of one without tests.
    """
    scored = rows[-1].file.scores.scores if rows else {}
    earlier = [task.name for row in rows for task in row.file.tasks if task.name in scored]
    bounds = _for_tasks(bounds, [*earlier, *watched], watched)
    if not earlier and not watched and bounds.min_new is None:
        raise InputError(
            "There is no earlier or watched task with test examples to compare (--check).",
            "Give --min-new, or watch tasks.",
        )
    if bounds.min_new is not None and not any(task.test for task in new):
        raise InputError("The new task has no test examples (--min-new).", "Give it some with --test.")


def _refuse_uncompared(bounds: Bounds, compared: Mapping[str, PairedChange]) -> None:
    if unknown := [name for name in (bounds.max_drop_of or {}) if name not in compared]:
        listed = ", ".join(compared) or "none"
        raise InputError(f"Task '{unknown[0]}' is not compared (--max-drop-of).", f"Compared are: {listed}.")


def _reference(rows: Sequence[Row], answers: AnswersOfRows, task: str, number: int, against: Against) -> int:
    """Return the row that a task is compared with: the one before, or that of its best score since it was learned."""
    if against == "previous":
        return number - 1
    first = next((index for index, row in enumerate(rows) if task in [record.name for record in row.file.tasks]), 0)
    matrix = score_matrix([row.file for row in rows])  # with scores that were taken later
    known = {index: entry.value for index in range(first, number) if (entry := matrix.score(index, task)) is not None}
    return max(known, key=known.__getitem__)


def _change(before: KeptAnswers, after: KeptAnswers, confidence: float) -> PairedChange:
    return paired_change(before.scores, after.scores, confidence)


def _for_tasks(bounds: Bounds, known: Sequence[str], watched: Mapping[str, str]) -> Bounds:
    """Return bounds with the tasks of a group in the place of its name, that of no task."""
    drops: dict[str, float] = {}
    for name, drop in (bounds.max_drop_of or {}).items():
        of_group = [task for task, group in watched.items() if group == name]
        if name not in known and not of_group:
            hint = nearest(name, known) or f"Learned and watched tasks: {', '.join(known)}."
            raise InputError(f"There is no task '{name}' (--max-drop-of).", hint)
        drops |= {name: drop} if name in known else {task: drop for task in of_group if task not in drops}
    return replace(bounds, max_drop_of=drops)


def _check_tests(ours: Sequence[Row], theirs: Sequence[Row], tasks: Sequence[str]) -> None:
    """Refuse runs whose test examples differ: their answers could not be paired."""
    sides = [tests_of(rows) for rows in (ours, theirs)]
    for name in tasks:
        if sides[0].get(name) != sides[1].get(name):
            raise InputError(f"The two runs have other test examples of '{name}'.", "Compare runs of the same tests.")


def _reason(task: TaskVerdict) -> str:
    if (change := task.change) is None:
        return f"{task.task} reaches {score(task.score.value)}, and {score(task.bound)} was asked for"
    lost = f"{task.task} lost {score(-change.change)} points ({score(change.before)} to {score(change.after)})"
    return f"{lost}, more than the {score(task.bound)} allowed"


def _open_question(task: TaskVerdict) -> str:
    needed = f"about {task.needed:,} test examples would tell" if task.needed else "no number of examples would tell"
    return f"{task.task} with {plural(task.score.n, 'test example')}, {needed}"


# As text -------------------------------------------------------------------------------------------------------------

HEADER = ("task", "before", "now", "change", "interval", "p", "noise", "wrong/right", "verdict")

COLUMNS = "noise: smallest change that could be told from none; wrong/right: answers that became wrong, and right"
"""What two of the columns hold."""


def table_rows(check: Check) -> list[tuple[str, ...]]:
    """Return one row of cells per task, under :data:`HEADER`; scores in percent, changes in points, watched tasks with
    a ``*``."""
    rows: list[tuple[str, ...]] = []
    for task in check.tasks:
        change = task.change
        now = score(task.score.value)
        name = f"{task.task} *" if task.task in check.watched else task.task
        if change is None:
            rows.append((name, MISSING, now, "new", "", "", "", "", task.verdict.value))
            continue
        limits, flips = interval(change.low, change.high), f"{change.lost}/{change.gained}"
        moved = score(change.change, signed=True)
        cells = (score(change.before), now, moved, limits, p_value(task.p), score(check.floors[task.task]), flips)
        rows.append((name, *cells, task.verdict.value))
    return rows


def legend(check: Check) -> str:
    """Return what the mark of watched tasks means; empty where there are none."""
    return "; *: watched, never learned" if any(task.task in check.watched for task in check.tasks) else ""


def markdown(check: Check) -> str:
    """Return the check as Markdown, for a comment on a pull request."""
    from merganser.files.markdown import code_span, escaped

    lines = [
        f"**{escaped(check.sentence())}**",
        "",
        f"{code_span(check.run)}, row {code_span(check.row)}, against {escaped(check.against)}; scores in percent, "
        f"{100 * check.bounds.confidence:g} % intervals of the change over the same test examples, p values corrected "
        f"for the number of tasks (Holm); {COLUMNS}{escaped(legend(check))}.",
        "",
        f"| {' | '.join(HEADER)} |",
        f"|{'---|' * len(HEADER)}",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(map(escaped, row))} |" for row in table_rows(check))]) + "\n"
