"""The answer first: in a sentence or two, what a run learned last, what it lost, and whether to keep it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

from merganser.metrics.course import TaskCourse, loss_sentence, untested
from merganser.metrics.paired import noise_floor
from merganser.metrics.retention import Verdict
from merganser.report.formatting import plural, score
from merganser.report.retention import Check, check_row
from merganser.runs import RunDirectory
from merganser.runs.answers import answers_of
from merganser.runs.record import RunRecord
from merganser.settings import CONFIDENCE

NAMED = 3
"""Tasks that the verdict names; more are counted."""


def learned_sentence(tasks: Sequence[TaskCourse]) -> str:
    """Say what was learned last and how well: ``Learned claims: 91.5 % (20.0 % before any training).``"""
    fresh = [task for task in tasks if task.fresh]
    known = [task.now.value for task in fresh if task.now is not None]
    if not fresh:
        return "Nothing was learned yet."
    if len(fresh) > 1:
        average = f": {score(math.fsum(known) / len(known))} % on average" if known else ""
        return f"Learned {plural(len(fresh), 'task')} together{average}."
    (newest,) = fresh
    if newest.now is None:
        return f"Learned {newest.task}, which has no test examples."
    before = "" if newest.before is None else f" ({score(newest.before.value)} % before any training)"
    return f"Learned {newest.task}: {score(newest.now.value)} %{before}."


def verdict_sentence(tasks: Sequence[TaskCourse]) -> str:
    """Say what was learned last, and what was lost."""
    return " ".join(filter(None, (learned_sentence(tasks), loss_sentence(tasks, interval=True))))


def noise(course: TaskCourse) -> float | None:
    """Return the smallest change of a task that could be told from none; without answers that of unpaired scores."""
    if course.paired is not None:
        return noise_floor(course.paired, CONFIDENCE)
    if course.learned is None or course.now is None:
        return None
    return NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * math.hypot(course.learned.stderr, course.now.stderr)


def noise_of(tasks: Sequence[TaskCourse]) -> dict[str, float]:
    """Return the smallest change of each task that could be told from none, of those that have a change."""
    floors = {task.task: noise(task) for task in tasks if task.change is not None}
    return {task: floor for task, floor in floors.items() if floor is not None}


def last_check(run: RunRecord, tasks: Sequence[TaskCourse]) -> Check | None:
    """Compare the last row with the one before; ``None`` where there is no earlier task, or answers are missing."""
    judged = [task for task in tasks if task.change is not None]
    if not judged or untested(judged):
        return None
    source = answers_of(run)
    return check_row(RunDirectory.open(Path(run.path)), rows=source.rows, answers=source.answers)


def _listed(names: Sequence[str]) -> str:
    """Write names as a person lists them: ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def keep_sentence(check: Check, learned: Sequence[str]) -> str:
    """Say whether the tasks that were learned last should be kept, with the reason in a few words."""
    allowed = f"{100 * check.bounds.max_drop:g} points"
    learning = f"learning {'it' if len(learned) == 1 else 'them'}"
    if check.verdict is Verdict.KEEP:
        return f"{learning} cost no earlier {'or watched ' if check.watched else ''}task more than {allowed}."
    if check.verdict is Verdict.DROP:
        return check.sentence().partition(": ")[2]
    unclear = [task for task in check.tasks if task.verdict is Verdict.UNCLEAR]
    needed = max((task.needed or 0 for task in unclear), default=0)
    which = f"{_listed([task.task for task in unclear])} more than {allowed}{' each' if len(unclear) > 1 else ''}"
    if len(unclear) > NAMED:
        kind = "earlier or watched tasks" if any(task.task in check.watched for task in unclear) else "earlier tasks"
        which = f"{len(unclear)} {kind} more than {allowed} each"
    enough = f"; about {needed:,} per task would tell" if needed else ""
    return f"there are too few test examples to see whether {learning} cost {which}{enough}."
