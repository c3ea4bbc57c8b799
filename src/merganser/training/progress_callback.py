"""Tells a listener about every step of a task while it is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merganser.events import Listener, StepDone
from merganser.training.trainer import StepLog

Signals = Callable[[int], tuple[float | None, int | None]]
"""``signals(step)``: probe loss and planned interval at a step, as far as the method has them."""


class ProgressCallback(TrainerCallback):
    """Reports each optimizer step; to be placed after the method's own callbacks."""

    def __init__(self, listener: Listener, task: str, log: StepLog, signals: Signals) -> None:
        self.listener = listener
        self.task = task
        self.log = log
        self.signals = signals

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        probe, interval = self.signals(state.global_step)
        self.listener(
            StepDone(self.task, state.global_step, state.max_steps, self.log.losses[-1], probe=probe, interval=interval)
        )
