"""How fast training changes the weights where nothing is merged: the learning signal of plain training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merganser.training.records import TaskRecords
from merganser.weights import Weights

PREFIX = "before/"
"""Prefix of the names in a checkpoint; no parameter has a name like that."""


class WeightChange(TrainerCallback):
    """Records, every ``every`` optimizer steps, the sum of the absolute changes of all trainable weights, per step.

    Args:
        records: receives it, as ``change`` of the step's signals.
        every: steps between two measurements.
    """

    def __init__(self, records: TaskRecords, every: int) -> None:
        self.records = records
        self.every = every

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._weights = Weights.of(kwargs["model"])
        self._before = self._weights.snapshot()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every:
            return
        with self.records.timed("bookkeeping_seconds"):
            self.records.signal(state.global_step).change = self._weights.minus(self._before).l1() / self.every
            self._before.copy_(self._weights)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the weights at the last measurement: name -> tensor."""
        return {f"{PREFIX}{name}": tensor for name, tensor in self._before.items()}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore :meth:`state_tensors`; other names are left alone."""
        self._before.copy_(self._before.like({name: tensors[f"{PREFIX}{name}"] for name in self._before}))
