"""What became of each task: its score before training, right after it was learned and now, and what changed since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merganser.metrics.paired import PairedChange, holm
from merganser.metrics.score import Score, ScoreRow
from merganser.tables import frame, html_table, interval, score

if TYPE_CHECKING:
    from pandas import DataFrame

LEVEL = 0.05
"""Chance that any task of a run is called lost or gained although none is (Holm over the tasks)."""

UNTESTED = "the answers to the test examples were not kept (evaluation.keep_answers)"
"""Why a change has no interval."""


@dataclass(frozen=True)
class TaskCourse:
    """The course of one task's score.

    Attributes:
        task: its name.
        before: score before any training.
        learned: right after it was learned; of a watched task, which is never learned, as ``before``.
        now: in the last row.
        fresh: whether it was learned in the last row.
        paired: change from ``learned`` to ``now`` over the same test examples, with its interval; ``None``: the answers
            were not kept, or there is nothing to compare.
        p: two-sided p value of no change, corrected for the number of tasks (Holm).
        watched: whether it is watched, and never learned.
    """

    task: str
    before: Score | None
    learned: Score | None
    now: Score | None
    fresh: bool = False
    paired: PairedChange | None = None
    p: float | None = None
    watched: bool = False

    @property
    def change(self) -> float | None:
        """Change since the task was learned, or of a watched one since before training.

        ``None`` for a fresh task, and where a score is missing.
        """
        if self.fresh or self.learned is None or self.now is None:
            return None
        return self.now.value - self.learned.value

    @property
    def word(self) -> str:
        """What the change is, in one word.

        ``lost`` and ``gained`` hold with 95 % confidence for all tasks together; ``noise`` is a change that the test
        set is too small to tell from none, ``lower`` and ``higher`` one that could not be tested; ``new`` was learned
        last.
        """
        change = self.change
        if change is None:
            return "new" if self.fresh and self.now is not None else ""
        if self.p is None:
            return "lower" if change < 0 else "higher" if change > 0 else "same"
        if self.p <= LEVEL:
            return "lost" if change < 0 else "gained"
        return "noise" if self.paired is not None and self.paired.lost + self.paired.gained else "same"

    @property
    def interval(self) -> str:
        """The 95 % interval of the change in points, such as ``−30.1 to −8.2``; empty where there is none."""
        return "" if self.paired is None else interval(self.paired.low, self.paired.high)


def courses(
    rows: Sequence[ScoreRow], changes: Mapping[str, PairedChange], watched: Sequence[str] = ()
) -> list[TaskCourse]:
    """Follow the learned tasks through the score matrix, in the order of learning, and then the watched ones.

    Args:
        rows: of the matrix, the one before training first.
        changes: task -> its paired change up to the last row, of tasks that have one.
        watched: tasks that are scored from row 0 on and never learned; with row 0 alone they have no course yet.
    """
    last = len(rows) - 1
    learned = [(task, number) for number, row in enumerate(rows) for task in row.learned]
    followed = [*learned, *((task, 0) for task in watched if last > 0)]
    compared = [task for task, number in followed if number < last and task in changes]
    corrected = dict(zip(compared, holm([changes[task].p for task in compared]), strict=True))
    return [
        TaskCourse(
            task,
            rows[0].scores.get(task),
            rows[number].scores.get(task),
            rows[last].scores.get(task),
            fresh=number == last,
            paired=changes[task] if task in corrected else None,
            p=corrected.get(task),
            watched=place >= len(learned),
        )
        for place, (task, number) in enumerate(followed)
    ]


def largest_loss(tasks: Sequence[TaskCourse]) -> TaskCourse | None:
    """Return the task that lost most, of those that are lost if any is; ``None`` if no score is lower."""
    lower = [task for task in tasks if task.change is not None and task.change < 0]
    shown = [task for task in lower if task.word == "lost"] or lower
    return min(shown, key=lambda task: task.change or 0.0, default=None)


def loss_sentence(tasks: Sequence[TaskCourse], *, interval: bool = False, since: str | None = None) -> str:
    """Say which task lost most, or that none did; empty where there was nothing to lose.

    Args:
        interval: with the range in which the loss likely is, its 95 % interval, where there is one.
        since: when the scores were taken from which changes count; default: when a task was learned, or, if it is
            watched, before any training.
    """
    if all(task.change is None for task in tasks):
        return ""
    worst = largest_loss(tasks)
    if worst is None:
        return "Nothing was lost."
    if worst.learned is None or worst.now is None:
        raise AssertionError("a change has two scores")
    since = since or ("before training" if worst.watched else "when learned")
    course = f"{score(worst.learned.value)} {since}, {score(worst.now.value)} now"
    course += f"; likely {worst.interval}" if interval and worst.paired is not None else ""
    moved = f"{worst.task} {score(worst.change, signed=True)} points ({course})"
    if worst.word == "noise":
        return f"No loss is beyond chance; the largest: {moved}."
    return f"Most lost: {moved}." if worst.word == "lost" else f"Most lost: {moved}, untested."


def since_learned(rows: Sequence[tuple[Sequence[str], Mapping[str, float]]]) -> list[dict[str, float]]:
    """Return for each row of scores the change of each task since the row right after it was learned.

    Tasks that are learned in a row, later, or never, or that are not scored, are left out of it.
    """
    when_learned: dict[str, float] = {}
    changes = []
    for learned, scores in rows:
        changes.append({task: value - when_learned[task] for task, value in scores.items() if task in when_learned})
        when_learned |= {task: scores[task] for task in learned if task in scores}
    return changes


HEAD = ("task", "before", "right after", "now", "change", "interval", "")
"""Over the cells of :func:`cells`."""

LEGEND = (
    "Scores in percent. before: before any training. change: in points since the task was learned, with its 95 % "
    "interval over the same test examples. lost, gained: with 95 % confidence for all tasks together; noise: a change "
    "that the test set is too small to tell from none."
)

WATCHED = "*: watched, never learned; change: since before any training"
"""What the mark of watched tasks means."""


def cells(course: TaskCourse) -> tuple[str, ...]:
    """Return a task's row of a table under :data:`HEAD`; a watched task has a ``*`` and was not learned."""
    scores = [score(None if entry is None else entry.value) for entry in (course.before, course.learned, course.now)]
    moved = "" if course.change is None else score(course.change, signed=True)
    if course.watched:
        scores[1] = ""
    return (f"{course.task} *" if course.watched else course.task, *scores, moved, course.interval, course.word)


def untested(tasks: Sequence[TaskCourse]) -> list[str]:
    """List the tasks whose change has no interval, because their answers were not kept."""
    return [task.task for task in tasks if task.change is not None and task.paired is None]


def untested_sentence(tasks: Sequence[TaskCourse]) -> str:
    """Say why changes have no interval; empty where all have one."""
    missing = untested(tasks)
    if not missing:
        return ""
    which = "" if len(missing) == sum(task.change is not None for task in tasks) else f" of {len(missing)} tasks"
    return f"No interval{which}: {UNTESTED}."


def courses_html(tasks: Sequence[TaskCourse], title: str) -> str:
    """Return the courses of tasks as an HTML table, for notebooks."""
    notes = [LEGEND, f"{WATCHED}." if any(task.watched for task in tasks) else "", untested_sentence(tasks)]
    return html_table(HEAD, [cells(task) for task in tasks], title, " ".join(filter(None, notes)))


def courses_frame(tasks: Sequence[TaskCourse]) -> DataFrame:
    """Return the courses of tasks as a frame of pandas; scores and changes are fractions.

    Raises:
        InputError: pandas is not installed.
    """
    scores = {name: [getattr(task, name) for task in tasks] for name in ("before", "learned", "now")}
    paired = [task.paired for task in tasks]
    columns = {name: [None if entry is None else entry.value for entry in values] for name, values in scores.items()}
    columns["change"] = [task.change for task in tasks]
    for name in ("low", "high"):
        columns[name] = [None if entry is None else getattr(entry, name) for entry in paired]
    columns["p"] = [task.p for task in tasks]
    counts = {
        name: [None if entry is None else getattr(entry, name) for entry in paired] for name in ("lost", "gained")
    }
    words: dict[str, Any] = {
        "became_wrong": counts["lost"],
        "became_right": counts["gained"],
        "word": [task.word for task in tasks],
        "watched": [task.watched for task in tasks],
    }
    return frame({**columns, **words}, [task.task for task in tasks], "task")
