"""Losses on old texts, task by task, and the parabola through three losses along a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from merganser.methods.base import TaskContext
from merganser.training.rehearsal import measure_loss, to_device

LEAST = 0.05
"""Losses are raised to at least this (nats) before they are divided by."""


def by_task(examples: Sequence[Any], groups: Sequence[tuple[str, str]]) -> dict[str, list[Any]]:
    """Sort examples of the memory by task, in the order of learning."""
    sorted_examples: dict[str, list[Any]] = {}
    for example, (task, _) in zip(examples, groups, strict=True):
        sorted_examples.setdefault(task, []).append(example)
    return sorted_examples


class TaskLosses:
    """The mean loss on up to ``most`` old texts of every earlier task, without dropout.

    Attributes:
        start: task -> loss when this was made.
    """

    def __init__(self, context: TaskContext, most: int) -> None:
        device = next(context.backbone.module.parameters()).device
        self._batches = {
            task: to_device(context.backbone.collate(list(examples[:most])), device)
            for task, examples in by_task(context.memory, context.memory_groups).items()
        }
        self.start = self.measure(context.backbone.module)

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Return task -> loss (nats)."""
        return {task: measure_loss(model, batch) for task, batch in self._batches.items()}

    def risen(self, now: Mapping[str, float]) -> float:
        """Return the largest ratio of a task's loss to that at the start."""
        return max(now[task] / max(self.start[task], LEAST) for task in now)


def parabola_minimum(losses: tuple[float, float, float]) -> float:
    """Return where in [0, 1] the parabola through losses at 0, 1/2 and 1 is least."""
    first, middle, last = losses
    curvature = 2 * (first - 2 * middle + last)
    slope = -3 * first + 4 * middle - last
    if curvature <= 0:
        return 0.0 if first < last else 1.0
    return min(1.0, max(0.0, -slope / (2 * curvature)))


def bounded(weight: float, losses: tuple[float, float, float], most: float) -> float:
    """Return the largest weight up to ``weight`` until which the parabola through three losses stays below ``most``."""
    first, middle, last = losses
    points = torch.linspace(0, weight, 101)
    values = first + (-3 * first + 4 * middle - last) * points + 2 * (first - 2 * middle + last) * points**2
    above = (values > most).nonzero()
    return float(points[-1] if len(above) == 0 else points[max(int(above[0]) - 1, 0)])
