"""Reports every optimizer step of a task to a listener."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merganser.events import StepDone
from merganser.training.records import TaskRecords


class ProgressCallback(TrainerCallback):
    """Sends a :class:`~merganser.events.StepDone` per optimizer step; place it after the method's own callbacks."""

    def __init__(self, records: TaskRecords) -> None:
        self.records = records

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        signal, task = self.records.signals[-1], self.records.task
        rate = signal.learning_rate
        self.records.listener(
            StepDone(task, state.global_step, state.max_steps, signal.loss, signal.probe, signal.interval, rate)
        )
