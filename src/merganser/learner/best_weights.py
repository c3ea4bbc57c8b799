"""Select the best weights of a task by development texts of all tasks seen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merganser import processes
from merganser.errors import RunError
from merganser.models.base import Backbone
from merganser.training.determinism import isolated_random
from merganser.training.distributed import SplitBatch, gather_full_weights, shifts_labels
from merganser.training.rehearsal import measure_loss, to_device
from merganser.training.state import TaskState
from merganser.weights import Weights


class Measured(Protocol):
    """A score or a loss of one task, over ``n`` texts."""

    @property
    def value(self) -> float: ...

    @property
    def n(self) -> int: ...


@dataclass(frozen=True)
class TaskLoss:
    """The mean loss (nats) on ``n`` texts of a task."""

    value: float
    n: int


class BestWeights(TrainerCallback):
    """Scores the development sets while a task is trained, and keeps the weights with the best mean.

    It comes after the method's own callbacks, so that weights are scored after merging. Training itself is the same
    with and without it.

    Args:
        backbone: whose weights are trained.
        score: task -> score (or loss) of the model as it is on its development set; the same in every process.
        every: optimizer steps between two scorings; ``None``: once per epoch.
        last: whether the weights after the last step are scored: always, or never.
        lowest: whether the best mean is the lowest one, as for losses.

    Attributes:
        scores: step -> mean over the tasks.
        step: the step of the best; of equal ones the earliest. ``None``: none was scored.
        seconds, examples: spent on scoring.
    """

    def __init__(
        self,
        backbone: Backbone,
        score: Callable[[], Mapping[str, Measured]],
        every: int | None,
        *,
        last: bool = True,
        lowest: bool = False,
    ) -> None:
        self.backbone = backbone
        self.score = score
        self.every = every
        self.last = last
        self.lowest = lowest
        self.scores: dict[int, float] = {}
        self.step: int | None = None
        self.seconds = 0.0
        self.examples = 0
        self._best: Weights | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.every is not None and state.global_step % self.every == 0:
            self._score_step(state, kwargs["model"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.every is None or state.global_step >= state.max_steps:
            self._score_step(state, kwargs["model"])

    def _score_step(self, state: TrainerState, model: Any) -> None:
        if self.last or state.global_step < state.max_steps:
            self._measure(state.global_step, model)

    def _measure(self, step: int, model: Any) -> None:
        if step in self.scores:
            return
        began = time.perf_counter()
        if processes.uses_fsdp():
            gather_full_weights(model, self.backbone.module)
        with isolated_random(0):
            scores = self.score()
        mean = math.fsum(score.value for score in scores.values()) / len(scores)
        if not math.isfinite(mean):
            raise processes.mark_collective(
                RunError(
                    f"The loss on the development texts became {mean} at step {step}.",
                    "Training has diverged; try a lower training.learning_rate.",
                )
            )
        best = None if self.step is None else self.scores[self.step]
        if best is None or (mean < best if self.lowest else mean > best):
            self.step = step
            self._best = self._weights.snapshot()
        self.scores[step] = mean
        self.examples += sum(score.n for score in scores.values())
        self.seconds += time.perf_counter() - began

    @property
    def _weights(self) -> Weights:
        """Looked up each time: with several processes, training replaces the parameters by sharded ones."""
        return Weights.of(self.backbone.module)

    def put_best(self) -> None:
        """Put the best weights into the model, when training is over; the last ones stay where none were scored."""
        if self._best is not None:
            self._weights.copy_(self._best)

    def task_state(self) -> TaskState:
        """Return the scores so far and the best weights."""
        values: dict[str, Any] = {"scores": [list(pair) for pair in self.scores.items()], "step": self.step}
        values |= {"seconds": self.seconds, "examples": self.examples}
        return TaskState(values, {} if self._best is None else dict(self._best))

    def load_task_state(self, state: TaskState) -> None:
        """Resume from :meth:`task_state`."""
        self.scores = {int(step): float(mean) for step, mean in state.values["scores"]}
        self.step = state.values["step"]
        self.seconds, self.examples = state.values["seconds"], state.values["examples"]
        if state.tensors:
            self._best = self._weights.snapshot().copy_(Weights(state.tensors))


def task_losses(backbone: Backbone, features: Mapping[str, list[dict[str, Any]]], batch: int) -> dict[str, TaskLoss]:
    """Measure the mean loss on each task's texts, over their label tokens (or texts, for a model without them).

    Args:
        features: task -> tokenised texts.
        batch: texts per forward pass, over all processes.
    """
    shifted = shifts_labels(backbone.module)
    device = backbone.device

    def collate(part: list[Any]) -> Mapping[str, Any]:
        return to_device(backbone.collate(part), device)

    losses = {}
    for task, rows in features.items():
        split = SplitBatch.of(rows, collate, shifted, batch)
        value = split.mean([measure_loss(backbone.module, part.batch) for part in split.parts])
        losses[task] = TaskLoss(value, len(rows))
    return losses
