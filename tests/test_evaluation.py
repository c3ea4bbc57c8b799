"""Scoring a model on test sets, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from merganser.evaluation import KnownTask, score_task, score_tasks, with_candidates
from merganser.events import Evaluating, Event
from merganser.models.base import Answer, AnswerSpec
from merganser.runs.record import TaskRecord
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


def known(name: str, answers: Sequence[tuple[str, str]], **changes: Any) -> KnownTask:
    test = [Example(f"text {said}", wanted, "") for said, wanted in answers]
    values: dict[str, Any] = {"spec": AnswerSpec(("yes", "no")), "metric": "accuracy", "prompt": "{input}"}
    return KnownTask(name, **{**values, **changes}, test=test)


def test_a_score_with_its_count_and_error() -> None:
    task = known("a", [("yes", "yes"), ("no", "no"), ("no", "yes"), ("yes", "yes")])
    score = score_task(Parrot(), task, batch=3)  # type: ignore[arg-type]
    assert (score.value, score.n) == (0.75, 4)
    assert score.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 4), rel=0.2)  # over n or n - 1


def test_progress_counts_over_all_tasks() -> None:
    events: list[Event] = []
    backbone = Parrot()
    tasks = [known("a", [("yes", "yes")] * 3), known("none", []), known("b", [("yes", "no")] * 4)]
    scores = score_tasks(backbone, tasks, 2, events.append)  # type: ignore[arg-type]
    assert {name: score.value for name, score in scores.items()} == {"a": 1.0, "b": 0.0}
    assert events == [
        Evaluating("a", 2, 7),
        Evaluating("a", 3, 7),
        Evaluating("b", 5, 7),
        Evaluating("b", 7, 7),
    ]
    assert [batch for _, _, batch in backbone.asked] == [2, 2]


def test_candidates_are_the_labels_seen_in_order_of_learning() -> None:
    a = known("a", [], spec=AnswerSpec(("x", "y"), {"x": "the letter x"}))
    b = known("b", [], spec=AnswerSpec(("y", "z"), {"z": "the letter z"}))
    free = known("c", [], spec=AnswerSpec(None), metric="rouge_l")
    wide = with_candidates(b, [a, free])
    assert wide.spec.labels == ("x", "y", "z")
    assert dict(wide.spec.label_texts) == {"x": "the letter x", "z": "the letter z"}
    assert wide.name == "b"
    assert with_candidates(free, [a, b]) is free
    assert with_candidates(a, []).spec.labels == ("x", "y")


def test_the_same_task_from_data_and_from_a_record() -> None:
    test = (Example("Is it? x", "yes", "7"),)
    task = Task(
        name="a",
        train=(Example("Is it? y", "yes", ""),),
        test=test,
        labels=("no", "yes"),
        label_texts={"yes": "it is"},
        metric="exact_match",
        answer="rank",
        prompt="Is it? {input}",
    )
    record = TaskRecord(
        name="a",
        index=1,
        row=1,
        seed=0,
        fingerprint="f",
        train_examples=1,
        labels=["no", "yes"],
        label_texts={"yes": "it is"},
        metric="exact_match",
        answer="rank",
        prompt="Is it? {input}",
        finished="",
    )
    assert KnownTask.of_task(task) == KnownTask.of_record(record, test)
    assert KnownTask.of_task(task).ask("so {braces}") == "Is it? so {braces}"
