"""Bursts of rehearsal at moments of model time, in which the weights are pulled towards an anchor (FOREVER)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merganser.training.distributed import SplitBatch, shifts_labels
from merganser.training.model_time import Clock, GrowingIntervals, ModelTime
from merganser.training.records import TaskRecords
from merganser.training.rehearsal import Collator, MemoryBatches, model_loss, rehearse_step, to_device
from merganser.training.state import TaskState
from merganser.weights import Weights

LOWEST, HIGHEST = 0.5, 3.0
"""Bounds of the factor by which the anchor's weight follows the pace of training."""


class Settings(Protocol):
    """Numbers of the method; :class:`~merganser.methods.forever.ForeverOptions` describes them."""

    days: list[float]
    day_steps: int
    clock: Clock
    anchor: float
    gamma: float
    smoothing: float


def anchor_factor(pace: float, gamma: float) -> float:
    """Compute ``clip(1 + gamma (pace - 1), .5, 3)``."""
    return min(HIGHEST, max(LOWEST, 1 + gamma * (pace - 1)))


class AnchoredReplay(TrainerCallback):
    """Takes optimizer steps on the memory when a moment has come; the schedule of the learning rate is not advanced.

    Its steps are updates, too: they take model time.

    Args:
        batches: of the memory.
        collate: makes a batch of examples.
        anchor: the weights before the task.
        settings: of the method.
        steps: at each moment.
        records: of the task.
        at_most: examples per forward pass; ``None``: a whole batch.
    """

    def __init__(
        self,
        batches: MemoryBatches,
        collate: Collator,
        anchor: Weights,
        settings: Settings,
        steps: int,
        records: TaskRecords,
        *,
        at_most: int | None = None,
    ) -> None:
        self.batches = batches
        self.collate = collate
        self.anchor = anchor
        self.settings = settings
        self.steps = steps
        self.records = records
        self.at_most = at_most
        self.moments = GrowingIntervals(settings.days)
        self._batches_drawn = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        settings = self.settings
        self._time = ModelTime(kwargs["model"], settings.day_steps, settings.clock, settings.smoothing)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        with self.records.timed("bookkeeping_seconds"):
            self._time.advance()
        if not self.moments.reached(self._time.days):
            return
        optimizer = kwargs["optimizer"]
        if any(group["lr"] for group in optimizer.param_groups):  # at a rate of 0 nothing would change
            with self.records.timed("rehearsal_seconds"):
                self._rehearse(kwargs["model"], optimizer, args.max_grad_norm)

    def _rehearse(self, model: nn.Module, optimizer: torch.optim.Optimizer, clip: float) -> None:
        device, shifted = next(model.parameters()).device, shifts_labels(model)

        def anchored(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
            return model_loss(model, batch) + self._pull(model)

        for _ in range(self.steps):
            rows = self.batches.rehearsal(self._batches_drawn)
            self._batches_drawn += 1
            batch = SplitBatch.of(rows, lambda part: to_device(self.collate(part), device), shifted, self.at_most)
            rehearse_step(model, optimizer, batch, clip, anchored, after_step=self._advance)
            self.records.cost.examples_rehearsed += len(rows)

    def _advance(self) -> None:
        self._time.advance()

    def _pull(self, model: nn.Module) -> Tensor:
        """Return the weighted squared distance of the trained weights from the anchor."""
        weight = self.settings.anchor * anchor_factor(self._time.pace, self.settings.gamma)
        named = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
        distances = [(parameter - self.anchor[name]).square().sum() for name, parameter in named]
        return weight * torch.stack(distances).sum()

    def task_state(self) -> TaskState:
        """Return the time, the moments that have passed, and the number of batches drawn."""
        return TaskState(
            {**self._time.task_state().values, "passed": self.moments.passed, "draws": self._batches_drawn}
        )

    def load_task_state(self, state: TaskState) -> None:
        """Restore :meth:`task_state`."""
        values = dict(state.values)
        self.moments.passed, self._batches_drawn = int(values.pop("passed")), int(values.pop("draws"))
        self._time.load_task_state(TaskState(values))
