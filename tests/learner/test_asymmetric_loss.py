"""Which labels a new task's texts are compared with in training, where an answer is sought among all labels seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from merganser import AnswerSpec, Example, Learner, Task
from merganser.learner.train_row import task_context
from tests.learner import toys


def task(name: str, labels: tuple[str, ...]) -> Task:
    examples = [Example(f"the film was good {i}", labels[i % len(labels)]) for i in range(8)]
    return Task(name, examples, test=examples[:4], spec=AnswerSpec(labels, metric="accuracy"))


@pytest.mark.parametrize(
    ("asymmetric", "method", "new", "kept"),
    [(True, "replay", 3, 5), (False, "replay", 5, 5), (True, "joint", 5, None)],
)
def test_texts_of_a_new_task_are_compared_with_its_labels_alone_and_the_memory_with_all(
    asymmetric: bool, method: str, new: int, kept: int | None, tmp_path: Path
) -> None:
    given: dict[str, Any] = toys.settings(
        training={"steps": 1, "asymmetric_loss": asymmetric}, method=method, memory={"number": 4}
    )
    del given["stream"]
    given["model"]["candidates"] = "seen"
    moods, topics = task("mood", ("good", "bad")), task("topic", ("film", "play", "music"))
    with Learner.open(tmp_path / "run", **given) as learner:
        if method == "joint":
            context = task_context(learner.session, [moods, topics], 1)
        else:
            learner.learn(moods)
            context = task_context(learner.session, [topics], 2)
    assert {len(each["candidates"]) for each in context.features} == {new}
    assert {len(each["candidates"]) for each in context.memory} == ({kept} if kept else set())
