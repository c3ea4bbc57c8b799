"""Model time: how far the weights have travelled while a task is trained, and moments at growing distances in it.

Source: Feng et al. 2026, "FOREVER" (arXiv 2601.03938); numbers as reported by others, see docs/methods/forever.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from merganser.training.state import TaskState
from merganser.weights import Weights

Clock = Literal["model", "steps"]
"""What is a day: the model time of the first steps of a task, or just as many steps."""

DAYS = (1.0, 2.0, 4.0, 7.0, 15.0, 30.0)
"""Moments of the forgetting curve, in days."""

SMOOTHING = 0.9
"""Decay of the moving average of the norms of updates."""


class GrowingIntervals:
    """Moments at given times, and from the last one on at every doubling.

    Args:
        times: in growing order, above 0.
    """

    def __init__(self, times: Sequence[float] = DAYS) -> None:
        self.times = list(times)
        self.passed = 0

    @property
    def next(self) -> float:
        """The next moment."""
        beyond = self.passed - len(self.times) + 1
        return self.times[-1] * 2.0**beyond if beyond > 0 else self.times[self.passed]

    def reached(self, time: float) -> bool:
        """Return whether a moment has come since the last call; of several, one is reported."""
        before = self.passed
        while time >= self.next:
            self.passed += 1
        return self.passed > before


class ModelTime:
    """Adds up the L2 norms of all updates of a model's trainable weights, in days.

    A day is the model time of the first ``day_steps`` updates. Call :meth:`advance` after every optimizer step.

    Args:
        module: whose weights are trained; at the beginning, or at the step of a checkpoint that is restored.
        day_steps: updates of the first day.
        clock: ``steps`` counts updates instead; norms are measured all the same.
        smoothing: decay of the moving average of the norms.

    Attributes:
        updates: so far.
        day: the model time of one day; ``None`` during the first.
    """

    def __init__(self, module: nn.Module, day_steps: int, clock: Clock = "model", smoothing: float = SMOOTHING) -> None:
        self.day_steps = day_steps
        self.clock = clock
        self.smoothing = smoothing
        self.updates = 0
        self.day: float | None = None
        self._travelled = self._average = 0.0
        self._weights = Weights.of(module)
        self._before = self._weights.snapshot()

    def advance(self) -> float:
        """Measure one update; returns its L2 norm."""
        norm = self._weights.minus(self._before).l2()
        self._before.copy_(self._weights)
        self._average = norm if self.updates == 0 else self.smoothing * self._average + (1 - self.smoothing) * norm
        self._travelled += norm
        self.updates += 1
        if self.updates == self.day_steps:
            self.day = self._travelled
        return norm

    @property
    def days(self) -> float:
        """The time in days; 0 during the first one, and as long as nothing has moved."""
        if self.day is None or self.day == 0:
            return 0.0
        return self.updates / self.day_steps if self.clock == "steps" else self._travelled / self.day

    @property
    def pace(self) -> float:
        """The moving average of the norms of updates / their mean over the first day; 1 during the first one."""
        return self._average / (self.day / self.day_steps) if self.day else 1.0

    def task_state(self) -> TaskState:
        """Return the time so far; the weights are those of the checkpoint itself."""
        values = {"updates": self.updates, "day": self.day, "travelled": self._travelled, "average": self._average}
        return TaskState(values)

    def load_task_state(self, state: TaskState) -> None:
        """Restore :meth:`task_state`, with the weights of that step in the model."""
        self.updates, self.day = int(state.values["updates"]), state.values["day"]
        self._travelled, self._average = state.values["travelled"], state.values["average"]
        self._before.copy_(self._weights)
