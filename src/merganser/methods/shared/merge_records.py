"""Record merges after the last step of a task in the ledger, and time them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from merganser.methods.base import TaskContext
from merganser.runs.record import MergeRecord
from merganser.training.records import TaskRecords

if TYPE_CHECKING:
    from merganser.weights import Weights


def timed_merge(records: TaskRecords) -> AbstractContextManager[None]:
    """Add the seconds spent inside to the merging time."""
    return records.timed("merging_seconds")


def record_merge(
    records: TaskRecords,
    context: TaskContext,
    *,
    trained: Weights,
    before: Weights,
    weight_new: float,
    weight_old: float,
    start: Weights | None = None,
    sizes: tuple[float, float, float | None] | None = None,
) -> None:
    """Record the merge of a task's trained weights with the model before it in the ledger.

    Args:
        records: of the method.
        context: of the task; the two updates are measured from its pretrained weights.
        trained: the task's weights after its last step.
        before: those of the model that they are merged with.
        weight_new, weight_old: weights of the two updates; their means if they differ between entries.
        start: where the task started; by default ``before``.
        sizes: norms of the task's update and of the model's so far, and the cosine between them, where they are not
            those of the weights (a method that merges products of factors).
    """
    norm_new, norm_old, cosine = sizes or _sizes(context, trained, before)
    travelled = trained.minus(before if start is None else start).l1()
    steps = context.steps
    records.add_merge(
        MergeRecord(
            task=context.task,
            task_index=context.index,
            merge=len(records.merges) + 1,
            step=steps,
            cause="end",
            interval=steps,
            next_interval=steps,
            learning_signal=travelled / max(1, steps),
            rehearsal_steps=0,
            weight_new=weight_new,
            weight_old=weight_old,
            norm_new=norm_new,
            norm_old=norm_old,
            cosine=cosine,
        )
    )


def _sizes(context: TaskContext, trained: Weights, before: Weights) -> tuple[float, float, float | None]:
    origin = context.pretrained()
    new, old = trained.minus(origin), before.minus(origin)
    return new.l2(), old.l2(), new.cosine(old)
