"""Losses on old texts, task by task, and the parabola through three losses along a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from merganser.methods.base import TaskContext
from merganser.models.base import IGNORE_INDEX, eval_mode
from merganser.training.consistency import Consistency, answer_logits
from merganser.training.rehearsal import measure_loss, to_device

LEAST = 0.05
"""Losses are raised to at least this (nats) before they are divided by."""


def by_task(examples: Sequence[Any], groups: Sequence[tuple[str, str]]) -> dict[str, list[Any]]:
    """Sort examples of the memory by task, in the order of learning."""
    sorted_examples: dict[str, list[Any]] = {}
    for example, (task, _) in zip(examples, groups, strict=True):
        sorted_examples.setdefault(task, []).append(example)
    return sorted_examples


Measure = Callable[[nn.Module, Mapping[str, Any]], float]
"""What is measured on a batch, without dropout: the smaller the better."""


class TaskLosses:
    """The mean loss on up to ``most`` old texts of every earlier task, without dropout.

    Args:
        measure: of a batch, instead of the loss.

    Attributes:
        start: task -> loss when this was made.
    """

    def __init__(self, context: TaskContext, most: int, measure: Measure = measure_loss) -> None:
        self._measure = measure
        device = next(context.backbone.module.parameters()).device
        self._batches = {
            task: to_device(context.backbone.collate(list(examples[:most])), device)
            for task, examples in by_task(context.memory, context.memory_groups).items()
        }
        self.start = self.measure(context.backbone.module)

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Return task -> loss (nats)."""
        return {task: self._measure(model, batch) for task, batch in self._batches.items()}

    def risen(self, now: Mapping[str, float]) -> float:
        """Return the largest ratio of a task's loss to that at the start."""
        return max(now[task] / max(self.start[task], LEAST) for task in now)


def expected_error(kind: str) -> Measure:
    """Return a measure: one minus the mean probability of the right labels, or of the tokens of the right answers."""

    @torch.no_grad()
    def measure(model: nn.Module, batch: Mapping[str, Any]) -> float:
        with eval_mode(model):
            logits = answer_logits(model(**batch), batch, kind)
        labels = batch["labels"][:, 1:] if kind == "causal" else batch["labels"]
        right = labels[labels != IGNORE_INDEX]
        return 1 - float(logits.softmax(-1).gather(-1, right.unsqueeze(-1)).mean())

    return measure


class NewTexts:
    """New texts: what is measured on them, and how far the answers to them are from those when this was made."""

    def __init__(self, context: TaskContext, texts: Sequence[Any], measure: Measure = measure_loss) -> None:
        self._measure = measure
        self._consistency = Consistency(context.backbone, texts)
        self._held = self._consistency.of(texts) or []
        device = next(context.backbone.module.parameters()).device
        self._batch = to_device(context.backbone.collate(list(texts)), device)

    def measure(self, model: nn.Module) -> float:
        """Return the loss, or what is measured instead."""
        return self._measure(model, self._batch)

    @torch.no_grad()
    def divergence(self, model: nn.Module) -> float:
        """Return the divergence from the answers when this was made (nats)."""
        with eval_mode(model):
            return float(self._consistency.divergence(model(**self._batch), self._batch, self._held))


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
