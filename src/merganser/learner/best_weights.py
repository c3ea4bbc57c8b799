"""Select the best weights of a task by development texts of all tasks seen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merganser import processes
from merganser.metrics.score import Score
from merganser.models.base import Backbone
from merganser.training.determinism import isolated_random
from merganser.training.distributed import gather_full_weights
from merganser.training.state import TaskState
from merganser.weights import Weights


class BestWeights(TrainerCallback):
    """Scores the development sets while a task is trained, and keeps the weights with the best mean.

    It comes after the method's own callbacks, so that weights are scored after merging. Training itself is the same
    with and without it.

    Args:
        backbone: whose weights are trained.
        score: scores the model as it is on the development sets; the same in every process.
        every: optimizer steps between two scorings; ``None``: once per epoch. The last weights are always scored.

    Attributes:
        scores: step -> mean over the tasks.
        step: the step of the best; of equal ones the earliest.
        seconds, examples: spent on scoring.
    """

    def __init__(self, backbone: Backbone, score: Callable[[], dict[str, Score]], every: int | None) -> None:
        self.backbone = backbone
        self.score = score
        self.every = every
        self.scores: dict[int, float] = {}
        self.step: int | None = None
        self.seconds = 0.0
        self.examples = 0
        self._best: Weights | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.every is not None and state.global_step % self.every == 0:
            self._measure(state.global_step, kwargs["model"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.every is None or state.global_step >= state.max_steps:
            self._measure(state.global_step, kwargs["model"])

    def _measure(self, step: int, model: Any) -> None:
        if step in self.scores:
            return
        began = time.perf_counter()
        if processes.uses_fsdp():
            gather_full_weights(model, self.backbone.module)
        with isolated_random(0):
            scores = self.score()
        mean = math.fsum(score.value for score in scores.values()) / len(scores)
        if self.step is None or mean > self.scores[self.step]:
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
        """Put the best weights into the model, when training is over."""
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
