"""Which steps of a task rehearse, where rehearsal is spaced by model time."""

from __future__ import annotations

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merganser.training.model_time import GrowingIntervals, ModelTime
from merganser.training.records import TaskRecords
from merganser.training.state import TaskState


class ReplaySpacing(TrainerCallback):
    """Lets some steps rehearse at every moment of :class:`~merganser.training.model_time.GrowingIntervals`.

    Args:
        records: of the task.
        day_steps: steps of the first day.
        burst: steps that rehearse at each moment, from the next one on.

    Attributes:
        left: how many of the next steps rehearse.
    """

    def __init__(self, records: TaskRecords, day_steps: int, burst: int) -> None:
        self.records = records
        self.day_steps = day_steps
        self.burst = burst
        self.left = 0
        self.moments = GrowingIntervals()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._time = ModelTime(kwargs["model"], self.day_steps)  # type: ignore[arg-type]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        with self.records.timed("bookkeeping_seconds"):
            self._time.advance()
        self.left = max(0, self.left - 1)
        if self.moments.reached(self._time.days):
            self.left = self.burst

    def task_state(self) -> TaskState:
        """Return the time, the moments that have passed, and the steps left that rehearse."""
        return TaskState({**self._time.task_state().values, "passed": self.moments.passed, "left": self.left})

    def load_task_state(self, state: TaskState) -> None:
        """Restore :meth:`task_state`."""
        values = dict(state.values)
        self.moments.passed, self.left = int(values.pop("passed")), int(values.pop("left"))
        self._time.load_task_state(TaskState(values))
