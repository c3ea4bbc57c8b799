"""Scoring a model on test sets, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from merganser.evaluation import score_task, score_tasks
from merganser.events import Evaluating, Event
from merganser.models.base import Answer
from merganser.streams.answers import AnswerSpec
from merganser.streams.task import Example, Task


class Parrot:
    """Answers every text with its last word, in batches as a backbone does."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], AnswerSpec, int]] = []

    def answer(
        self,
        texts: Sequence[str],
        spec: AnswerSpec,
        batch: int,
        progress: Callable[[int], None] | None = None,
        *,
        shared: bool = False,
    ) -> list[Answer]:
        self.asked.append((list(texts), spec, batch))
        for start in range(0, len(texts), batch):
            if progress is not None:
                progress(len(texts[start : start + batch]))
        return [Answer(text.split()[-1], 1.0) for text in texts]


def known(name: str, answers: Sequence[tuple[str, str]]) -> Task:
    test = [Example(f"text {given}", wanted, "") for given, wanted in answers]
    return Task(name, (), test=test, spec=AnswerSpec(("yes", "no"), metric="accuracy"))


def test_a_score_with_its_count_and_error() -> None:
    task = known("a", [("yes", "yes"), ("no", "no"), ("no", "yes"), ("yes", "yes")])
    score = score_task(Parrot(), task, batch=3).score  # type: ignore[arg-type]
    assert (score.value, score.n) == (0.75, 4)
    assert score.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 4), rel=0.2)  # over n or n - 1


def test_progress_counts_over_all_tasks() -> None:
    events: list[Event] = []
    backbone = Parrot()
    tasks = [known("a", [("yes", "yes")] * 3), known("none", []), known("b", [("yes", "no")] * 4)]
    scores = score_tasks(backbone, tasks, 2, events.append)  # type: ignore[arg-type]
    assert {name: each.score.value for name, each in scores.items()} == {"a": 1.0, "b": 0.0}
    assert events == [
        Evaluating("a", 2, 7),
        Evaluating("a", 3, 7),
        Evaluating("b", 5, 7),
        Evaluating("b", 7, 7),
    ]
    assert [batch for _, _, batch in backbone.asked] == [2, 2]
