"""Answers that changed since a task was learned: how many became wrong and right, and some of them in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from merganser.metrics.course import TaskCourse
from merganser.report.changed_answers import Flip, said, tests_of
from merganser.report.changed_answers import flips as changed_answers
from merganser.report.formatting import shortened
from merganser.report.series import rows_learned
from merganser.runs.answers import answers_of
from merganser.runs.record import RunRecord

MOST = 10
"""Examples shown of a task."""

MOST_IN_ALL = 160
"""Examples shown on a page: of many tasks, fewer are shown of each, so that the page stays small."""

LONGEST = 240
"""Characters shown of a text."""


def flips(run: RunRecord, tasks: Sequence[TaskCourse]) -> list[dict[str, Any]]:
    """Return for each earlier task how many answers became wrong and right since it was learned, and examples.

    The largest losses come first. A task whose answers were not kept, or none of whose scores changed, is left out.
    """
    changed = [task for task in tasks if task.paired is not None and task.paired.lost + task.paired.gained]
    if not changed:
        return []
    source = answers_of(run)
    rows, answers, tests = source.rows, source.answers, tests_of(source.rows)
    row_of = {**rows_learned(run), **{task.name: 0 for task in run.scores.watched}}
    most = max(2, min(MOST, MOST_IN_ALL // len(changed)))
    entries = []
    for task in sorted(changed, key=lambda task: task.change or 0.0):
        before, now = answers.of(task.task, row_of[task.task]), answers.of(task.task, len(rows) - 1)
        assert task.paired is not None
        words = ("became wrong", "became right") if task.paired.right_or_wrong else ("scores lower", "scores higher")
        shown = [_example(flip, words) for flip in changed_answers(before, now, tests.get(task.task, ()))[:most]]
        left = task.paired.lost + task.paired.gained - len(shown)
        entries.append(
            {
                "task": task.task,
                "n": f"{task.paired.n:,}",
                "lost": f"{task.paired.lost:,}",
                "gained": f"{task.paired.gained:,}",
                "words": words,
                "examples": shown,
                "left": f"{left:,}" if left else "",
            }
        )
    return entries


def _example(flip: Flip, words: tuple[str, str]) -> dict[str, Any]:
    lost = flip.change < 0
    before, now = said(flip)
    return {
        "lost": lost,
        "word": words[not lost],
        "input": shortened(flip.text, LONGEST),
        "before": shortened(before, LONGEST),
        "now": shortened(now, LONGEST),
        "expected": shortened(flip.expected, LONGEST),
    }
