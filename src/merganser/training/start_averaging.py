"""Averages with the weights that a task started from, while it is trained (SFA)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merganser.runs.record import MergeRecord
from merganser.training.records import TaskRecords
from merganser.training.state import TaskState
from merganser.weights import Weights


def average_steps(steps: int, share: float) -> list[int]:
    """Return the steps, from 1, after which a task of ``steps`` steps is averaged before it ends.

    Every ``share * steps`` of them, rounded half up; each step at most once.
    """
    part = max(Fraction(repr(float(share))) * steps, Fraction(1))
    places = (math.floor(number * part + Fraction(1, 2)) for number in range(1, math.ceil(steps / part) + 1))
    return sorted({place for place in places if place < steps})


class StartAveraging(TrainerCallback):
    """Sets the weights to ``(1 - beta) theta + beta start`` after some steps, and records each as a merge.

    The optimizer keeps its moments.

    Args:
        steps: after which to average, in order.
        beta: weight of the start.
        records: of the task.
    """

    def __init__(self, steps: Sequence[int], beta: float, records: TaskRecords) -> None:
        self.steps = list(steps)
        self.beta = beta
        self.records = records

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        model = kwargs["model"]
        self._weights = Weights.of(model)  # type: ignore[arg-type]
        self._start = self._weights.snapshot()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step in self.steps:
            self._average(state.global_step)

    def _average(self, step: int) -> None:
        with self.records.timed("merging_seconds"):
            change = self._weights.minus(self._start)
            moved, norm = change.l1(), change.l2()
            self._weights.combine_(1 - self.beta, [(self.beta, self._start)])
        number = self.steps.index(step)
        before, after = ([0, *self.steps][number], [*self.steps, step][number + 1])
        interval = step - before
        self.records.add_merge(
            MergeRecord(
                task=self.records.task,
                task_index=self.records.index,
                merge=len(self.records.merges) + 1,
                step=step,
                cause="due",
                interval=interval,
                next_interval=after - step or interval,
                learning_signal=moved / step,
                rehearsal_steps=0,
                weight_new=1 - self.beta,
                weight_old=self.beta,
                norm_new=norm,
            )
        )

    def task_state(self) -> TaskState:
        """Return the weights that the task started from."""
        return TaskState(tensors=dict(self._start))

    def load_task_state(self, state: TaskState) -> None:
        """Restore :meth:`task_state`."""
        self._start.copy_(self._start.like({name: state.tensors[name] for name in self._start}))
