"""Answers that changed since a task was learned: how many became wrong and right, and some of them in full."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merganser.metrics.course import TaskCourse
from merganser.report.formatting import shortened
from merganser.report.series import rows_learned
from merganser.runs import RunDirectory
from merganser.runs.answers import AnswersOfRows
from merganser.runs.record import KeptAnswers, KeptExample, RunRecord

MOST = 10
"""Examples shown of a task."""

MOST_IN_ALL = 200
"""Examples shown on a page: of many tasks, fewer are shown of each, so that the page stays small."""

LONGEST = 240
"""Characters shown of a text."""


def flips(run: RunRecord, tasks: Sequence[TaskCourse]) -> list[dict[str, Any]]:
    """Return for each earlier task how many answers became wrong and right since it was learned, and examples.

    The largest losses come first. A task whose answers were not kept, or none of whose scores changed, is left out.
    """
    changed = [each for each in tasks if each.paired is not None and each.paired.lost + each.paired.gained]
    if not changed:
        return []
    rows = RunDirectory.open(Path(run.path)).rows
    answers = AnswersOfRows(rows)
    row_of = {**rows_learned(run), **{each.name: 0 for each in run.scores.watched}}
    examples: dict[str, list[KeptExample]] = {}
    for row in rows:
        for example in (*row.examples("test"), *row.examples("watch")):
            examples.setdefault(example.task, []).append(example)
    most = max(2, min(MOST, MOST_IN_ALL // len(changed)))
    found = []
    for each in sorted(changed, key=lambda each: each.change or 0.0):
        before, now = answers.of(each.task, row_of[each.task]), answers.of(each.task, len(rows) - 1)
        assert each.paired is not None
        words = ("became wrong", "became right") if each.paired.right_or_wrong else ("scores lower", "scores higher")
        shown = _examples(before, now, examples.get(each.task, []), most, words)
        left = each.paired.lost + each.paired.gained - len(shown)
        found.append(
            {
                "task": each.task,
                "n": f"{each.paired.n:,}",
                "lost": f"{each.paired.lost:,}",
                "gained": f"{each.paired.gained:,}",
                "words": words,
                "examples": shown,
                "left": f"{left:,}" if left else "",
            }
        )
    return found


def _examples(
    before: KeptAnswers, now: KeptAnswers, examples: Sequence[KeptExample], most: int, words: tuple[str, str]
) -> list[dict[str, Any]]:
    """Return the examples whose score changed most, losses first."""
    differences = [later - earlier for earlier, later in zip(before.scores, now.scores, strict=True)]
    places = sorted((place for place, each in enumerate(differences) if each), key=lambda place: differences[place])
    return [
        {
            "lost": differences[place] < 0,
            "word": words[differences[place] > 0],
            "input": shortened(_question(examples[place]), LONGEST),
            "before": _answer(before, place),
            "now": _answer(now, place),
            "expected": shortened(examples[place].output, LONGEST),
        }
        for place in places[:most]
        if place < len(examples)
    ]


def _answer(kept: KeptAnswers, place: int) -> str:
    if kept.answers:
        return shortened(kept.answers[place], LONGEST) or "(nothing)"
    return "preferred this answer" if kept.scores[place] else "preferred the rejected one"


def _question(example: KeptExample) -> str:
    """Return the text of an example, of a conversation its last turn before the answer."""
    if example.input or example.image:
        return example.input or "(an image)"
    turns = [turn.get("content") for turn in example.messages[:-1]]
    texts = [text for text in turns if isinstance(text, str)]
    return texts[-1] if texts else "(a conversation)"
