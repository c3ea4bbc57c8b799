"""Intervals that are longer than a task are named before work."""

from __future__ import annotations

from typing import Any

import pytest

from merganser.events import Event, Notice
from merganser.learner.timing import note_timing
from merganser.streams.task import Example, Task
from merganser.training.options import TrainingOptions


class Session:
    """What the check reads of a session."""

    def __init__(self, joint: bool = False, **training: Any) -> None:
        self.config = self
        self.method = self
        self.joint = joint
        self.training = TrainingOptions(**training)
        self.noted: set[tuple[str, str]] = set()
        self.notes: list[str] = []

    def memory(self) -> list[Example]:
        return [Example("x", "y", "")] * 8

    def listener(self, event: Event) -> None:
        assert isinstance(event, Notice)
        self.notes.append(event.text)


def task(name: str, number: int) -> Task:
    return Task(name, [Example(str(i), "y", "") for i in range(number)], dev=[Example("d", "y", "")])


FIVE = {"epochs": 2.5, "batch": 4, "warmup": 0}
"""8 texts: 5 steps."""


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"warmup": 4}, None),
        (
            {"warmup": 5},
            "'a' (and 1 more) takes 5 optimizer steps, and training.warmup is 5: the learning rate",
        ),
        ({"warmup": 50, "steps": 10}, "would never reach 0.0003, so it warms up for 1 instead (a tenth of the steps)."),
        ({"checkpoint_steps": 5}, None),
        ({"checkpoint_steps": 6}, "training.checkpoint_steps is 6: only training.checkpoint_minutes has an effect."),
        ({"checkpoint_steps": 6, "checkpoint_minutes": None}, "training.checkpoint_steps is 6: none is written."),
        ({"select_every": 9}, None),
        ({"select_best": True, "select_every": 4}, None),
        ({"select_best": True, "select_every": 5}, "evaluates weights every 5 steps: only the last ones."),
        (
            {"select_best": True, "select_every": 5, "select_last": False},
            "steps: none, so that the last ones are deployed",
        ),
        ({"select_best": True}, None),
        (
            {"select_best": True, "epochs": 1},
            "takes 2 optimizer steps, and training.select_best evaluates weights once per",
        ),
    ],
)
def test_what_is_said(given: dict[str, Any], text: str | None) -> None:
    session: Any = Session(**{**FIVE, **given})
    for _ in range(2):  # once, although a stream is checked as a whole and then task by task
        note_timing(session, [task("a", 8), task("b", 8)])
    assert len(session.notes) == (text is not None)
    assert text is None or text in session.notes[0]


def test_tasks_of_other_sizes_and_tasks_learned_together() -> None:
    session: Any = Session(**{**FIVE, "checkpoint_steps": 6})
    note_timing(session, [task("a", 8), task("b", 16), task("c", 4)])
    starts = [note.split(",")[0] for note in session.notes]
    assert starts == ["Task 'a' takes 5 optimizer steps", "Task 'c' takes 3 optimizer steps"]
    session = Session(True, **{**FIVE, "checkpoint_steps": 16})
    note_timing(session, [task("a", 8), task("b", 8)])  # 24 texts with those stored
    assert [note.split(",")[0] for note in session.notes] == ["Task 'a' takes 15 optimizer steps"]
