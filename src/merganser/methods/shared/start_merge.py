"""Interpolation between a task's trained weights and those deployed before it, after the last step of the task."""

from __future__ import annotations

from pydantic import Field

from merganser.methods.base import MethodOptions, TaskContext
from merganser.methods.shared.merge_records import record_merge, timed_merge
from merganser.training.records import TaskRecords


class FinishOptions(MethodOptions):
    """One interpolation back to a task's start, when the task ends."""

    finish_weight: float | None = Field(
        None,
        ge=0,
        le=1,
        description="when a task ends, from the second on, keep this share of the way from the weights that it started "
        "from, start + finish_weight (trained - start); null: all of it, without a merge",
    )

    def finish(self, records: TaskRecords, context: TaskContext) -> None:
        """Interpolate back to the start of the task, where that is asked for and the task is not the first."""
        if self.finish_weight is not None and context.index > 1:
            merge_with_start(records, context, self.finish_weight)


def merge_with_start(records: TaskRecords, context: TaskContext, weight: float) -> None:
    """Deploy ``(1 - weight) start + weight trained``; the merge is recorded.

    Args:
        records: of the method.
        context: of a task that starts from the deployed weights, with the trained ones in the model.
        weight: of the trained weights, in [0, 1].
    """
    from merganser.merging.ema import ema_step
    from merganser.weights import Weights

    current, before = Weights.of(context.backbone.module), context.before()
    record_merge(records, context, trained=current, before=before, weight_new=weight, weight_old=1 - weight)
    with timed_merge(records):
        for name, value in current.items():
            value.copy_(ema_step(before[name], value, alpha=weight))
