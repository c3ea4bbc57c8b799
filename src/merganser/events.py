"""Events of a run, passed to a listener: the live view, a test, a user's own program.

A listener is any callable that takes one event. The library prints nothing; the command passes a listener that does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

ALONE = " (alone)"
"""After the name of a task in the events of a training that is no part of the run: of a single-task reference."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A line of text for the user: a run resumed, a repair made, a task already learned."""

    text: str


@dataclass(frozen=True, slots=True)
class TaskStarted:
    """Training of a task begins. ``steps``: optimizer steps planned; ``step``: how many of them were taken before
    an interruption.
    """

    task: str
    index: int
    examples: int
    memory_examples: int
    steps: int
    step: int = 0


@dataclass(frozen=True, slots=True)
class StepDone:
    """One inner optimizer step. ``probe``: loss on the memory, if probed; ``interval``: planned merge interval."""

    task: str
    step: int
    steps: int
    loss: float | None
    probe: float | None = None
    interval: int | None = None
    learning_rate: float | None = None


@dataclass(frozen=True, slots=True)
class Merged:
    """A merge was applied, or refused for a ``reason``: it did harm and was undone."""

    task: str
    step: int
    cause: str
    weight_new: float
    weight_old: float
    rehearsal_steps: int
    interval: int
    next_interval: int
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Evaluating:
    """Progress of an evaluation: ``done`` of ``total`` test examples of ``task`` are answered."""

    task: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class RowDone:
    """Scores of every evaluated task. ``learned`` is empty before any training."""

    learned: tuple[str, ...]
    scores: dict[str, float] = field(default_factory=dict)


Event = Notice | TaskStarted | StepDone | Merged | Evaluating | RowDone
Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """Ignore every event: the default listener."""
