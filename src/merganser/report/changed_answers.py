"""The test examples whose score changed between two rows of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from merganser.runs.record import KeptAnswers, KeptExample
from merganser.runs.rows import Row


def tests_of(rows: Sequence[Row]) -> dict[str, list[KeptExample]]:
    """Return the test examples of every learned and watched task, in the order of its answers."""
    by_task: dict[str, list[KeptExample]] = {}
    for row in rows:
        for example in (*row.examples("test"), *row.examples("watch")):
            by_task.setdefault(example.task, []).append(example)
    return by_task


@dataclass(frozen=True)
class Flip:
    """A test example whose score fell or rose between two rows.

    Attributes:
        number: 1-based position in the test set.
        text: the example as the model reads it; of a conversation its last turn before the answer; empty: not known.
        expected: the right answer; empty: not known.
        before, after: the answers; ``None``: the model writes none, it was asked which of two it prefers.
        change: of the score, in [-1, 1].
    """

    number: int
    text: str
    expected: str
    before: str | None
    after: str | None
    change: float


def flips(before: KeptAnswers, after: KeptAnswers, tests: Sequence[KeptExample]) -> list[Flip]:
    """Return the examples whose score changed, the largest losses first.

    Args:
        before, after: the answers of two rows to the same task.
        tests: its test examples; none for a task that was not learned.
    """
    changed = []
    for index, (first, second) in enumerate(zip(before.scores, after.scores, strict=True)):
        if first != second:
            text, expected = _shown(tests[index]) if index < len(tests) else ("", "")
            old, new = (kept.answers[index] if kept.answers else None for kept in (before, after))
            changed.append(Flip(index + 1, text, expected, old, new, second - first))
    return sorted(changed, key=lambda flip: flip.change)


def said(flip: Flip) -> tuple[str, str]:
    """Return both answers for people: ``(nothing)`` is an empty one."""
    preferred = ("preferred this answer", "preferred the rejected one")
    if flip.before is None or flip.after is None:
        return preferred if flip.change < 0 else preferred[::-1]
    return flip.before or "(nothing)", flip.after or "(nothing)"


def _shown(example: KeptExample) -> tuple[str, str]:
    if example.image:
        return example.input or "(an image)", example.output
    if example.input or not example.messages:
        return example.input or example.id, example.output
    turns = [turn.get("content") for turn in example.messages[:-1]]
    texts = [text for text in turns if isinstance(text, str)]
    return texts[-1] if texts else "(a conversation)", example.output
