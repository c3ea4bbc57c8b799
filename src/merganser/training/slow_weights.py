"""Slow weights: a moving average of the trained ones, step by step."""

from __future__ import annotations

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merganser.training.records import TaskRecords
from merganser.training.state import TaskState
from merganser.weights import Weights


class SlowWeights(TrainerCallback):
    """Follows the trained weights: ``slow <- decay slow + (1 - decay) trained`` after every optimizer step.

    Args:
        start: the slow weights before the first step; changed in place.
        decay: of the average.
        records: of the task.

    Attributes:
        slow: the slow weights.
    """

    def __init__(self, start: Weights, decay: float, records: TaskRecords) -> None:
        self.slow = start
        self.decay = decay
        self.records = records

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._fast = Weights.of(kwargs["model"])  # type: ignore[arg-type]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        with self.records.timed("merging_seconds"):
            self.slow.combine_(self.decay, [(1 - self.decay, self._fast)])

    def task_state(self) -> TaskState:
        """Return the slow weights."""
        return TaskState(tensors=dict(self.slow))

    def load_task_state(self, state: TaskState) -> None:
        """Restore :meth:`task_state`."""
        self.slow.copy_(self.slow.like({name: state.tensors[name] for name in self.slow}))
