"""``aim-tried``: AimMerging with ingredients that are not a part of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser.errors import RunError
from merganser.files.atomic import write_json
from merganser.methods.aim import Aim
from merganser.methods.base import TaskContext
from merganser.methods.shared.method_state import read_json_state
from merganser.methods.shared.rehearsal import RehearsalOptions
from merganser.training.state import TaskState
from merganser_tried.losses import TaskLosses, by_task
from merganser_tried.options import AimTriedOptions
from merganser_tried.slots import allocate

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import TrainerCallback

    from merganser.training.trainer import Penalty

STATE = "tried.json"

HELD_NEW, HELD_OLD = 8, 2
"""Of so many new and old texts one is never trained on, with ``measured_weight: held_out``."""

DAY = 4
"""Optimizer steps of the first day of model time."""


class AimTried(Aim):
    """AimMerging, one ingredient more; a task that was interrupted has to be learned from its start."""

    Options = AimTriedOptions
    title = "AimMerging, tried"
    paper = "docs/research.md"
    idea = "AimMerging with ingredients that were tried and are not a part of it."
    supports_distributed = False

    def __init__(self, options: AimTriedOptions) -> None:
        super().__init__(options)
        self._loss_at_end: list[float] = []  # of every earlier task
        self._learned: dict[str, float] = {}  # task -> loss on its memory right after it was learned
        self._dropped: dict[str, int] = {}  # task -> texts that are not kept any more

    def callbacks(self, context: TaskContext) -> list[TrainerCallback]:
        from merganser_tried.steps import FlatGradients, RateByLoss

        context = self._kept(context)
        whole = context
        held_new: list[Any] = []
        if self.options.measured_weight in ("held_out", "held_out_bounded"):
            held_new = self._hold_out(context)
            context = _without_held(context)
        before: list[TrainerCallback] = []
        self._slow = self._slow_weights(context)
        ends = self._loss_at_end
        self._rate = RateByLoss(sum(ends) / len(ends) if ends else None)
        if self.options.rate_by_loss:
            before.append(self._rate)
        if self.options.flat_radius is not None and context.index == 1:
            before.append(FlatGradients(self.options.flat_radius, self.records))
        after = [] if self._slow is None else [self._slow]
        merging = super().callbacks(context)
        if self._callback is not None:
            merging = [self._tried_callback(context, whole, held_new), *merging[1:]]
        self._make_rehearsal(context)
        bursts = [] if self._beside is None else self._beside.callbacks(context, self.records)
        return [*before, *bursts, *merging, *after]

    def _slow_weights(self, context: TaskContext) -> Any:
        from merganser.training.slow_weights import SlowWeights

        if not self.options.slow_deployed and self.options.consistent_with != "slow":
            return None
        return SlowWeights(context.before(), self.options.slow_decay, self.records)

    def _tried_callback(self, context: TaskContext, whole: TaskContext, held_new: list[Any]) -> TrainerCallback:
        """Return the callback that merges, with what is tried."""
        from merganser.training.rehearsal import measure_loss
        from merganser_tried.losses import NewTexts, TaskLosses, expected_error
        from merganser_tried.merges import TriedMerging

        usual = self._callback
        assert usual is not None
        measured = whole
        if held_new:
            positions = [i for i in range(len(whole.memory)) if i % HELD_OLD]
            measured = _with_memory(whole, positions)
        size = self.config.probe_examples(self.rehearsal_batch(context.training, len(context.memory)) or 1)
        accuracy = self.options.measured_by == "expected_accuracy"
        measure = expected_error(context.backbone.kind) if accuracy else measure_loss
        self._callback = TriedMerging(
            context.memory,
            usual.config,
            collator=usual.collator,
            probe_groups=context.memory_groups,
            records=self.records,
            options=self.options,
            losses=TaskLosses(measured, most=4, measure=measure),
            new=NewTexts(context, held_new or list(context.features[: max(size, 8)]), measure),
        )
        return self._callback

    def _hold_out(self, context: TaskContext) -> list[Any]:
        """Take every eighth new text out of training, in the place of which its neighbour is read again."""
        features: Any = context.features
        held = [features[i] for i in range(0, len(features) - 1, HELD_NEW)]
        for i in range(0, len(features) - 1, HELD_NEW):
            features[i] = features[i + 1]
        return held

    def _make_rehearsal(self, context: TaskContext) -> None:
        """Make what puts old texts beside the batches."""
        from merganser_tried.rehearsal import TriedRehearsal

        self._beside = None
        share = self.options.beside(context)
        if share is None:
            return
        consistency = self.options.consistency_of(context.backbone.kind)
        if self.options.old_texts == "in_bursts":
            options = RehearsalOptions(name="replay", spacing="model_time", day_steps=DAY, consistency=consistency)
        else:
            options = RehearsalOptions(name="replay", share=share, consistency=consistency)
        longest = self.options.longest_beside(context)
        if longest is not None:
            context = replace(context, memory=context.backbone.shortened(context.memory, longest))
        self._rehearsed = context
        passes = self.options.batches_per_pass(context)
        on_loss = None if self._callback is None else self._callback.replayed.add
        slow = None if self._slow is None else self._slow.slow
        self._beside = TriedRehearsal(
            options, "aim replay", on_loss, passes, tried=self.options, context=context, slow=slow
        )

    def penalty(self, context: TaskContext) -> Penalty | None:
        import torch

        from merganser_tried.steps import softened

        term = None if self._beside is None else self._beside.penalty(self._rehearsed, self.records)
        weight, backbone, beside = self.options.earlier_weight, context.backbone, self._beside
        own = torch.tensor(backbone.label_rows(context.spec)) if weight is not None and context.index > 1 else None

        def with_new_texts(
            model: nn.Module, step: int, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
        ) -> Tensor:
            loss = float(outputs["loss"].detach())
            self._rate.losses.append(loss)
            if beside is not None:
                beside.last_losses[1] = loss
            change = outputs["loss"].detach() * 0
            if own is not None and weight is not None:
                change = softened(inputs, outputs, own, weight)
            return change if term is None else change + term(model, step, inputs, outputs)

        return with_new_texts

    def after_task(self, context: TaskContext) -> None:
        from merganser.weights import Weights

        super().after_task(context)
        if self._rate.losses:
            self._loss_at_end.append(self._rate.at_the_end())
        if self.options.slow_deployed:
            assert self._slow is not None
            Weights.of(context.backbone.module).copy_(self._slow.slow)

    def _kept(self, context: TaskContext) -> TaskContext:
        """Drop stored texts of the tasks that lose least, half of all in the end; each keeps one at least."""
        if self.options.slots == "evenly" or not context.memory:
            return context
        stored = by_task(context.memory, context.memory_groups)
        sizes = {task: len(examples) - self._dropped.get(task, 0) for task, examples in stored.items()}
        now = TaskLosses(context, most=8).start
        lost = {task: max(0.0, now[task] - self._learned[task]) for task in stored if task in self._learned}
        newest = sum(lost.values()) / len(lost) if lost else 1.0  # has had no time to lose anything
        weights = {task: lost.get(task, newest) for task in stored}
        self._learned |= {task: now[task] for task in stored if task not in self._learned}
        slots = max(len(stored), sum(map(len, stored.values())) // 2)
        kept = allocate(slots, weights, sizes)
        self._dropped = {task: len(examples) - kept[task] for task, examples in stored.items()}
        positions, counted = [], dict.fromkeys(stored, 0)
        for position, (task, _) in enumerate(context.memory_groups):
            if counted[task] < kept[task]:
                positions.append(position)
            counted[task] += 1
        return _with_memory(context, positions)

    def load_task_state(self, state: TaskState) -> None:
        raise RunError(
            "aim-tried cannot go on in the middle of a task.",
            "Remove the folder of this cell, and run the study again.",
        )

    def save(self, folder: Path) -> None:
        super().save(folder)
        state = {"loss_at_end": self._loss_at_end, "learned": self._learned, "dropped": self._dropped}
        write_json(folder / STATE, state)

    def load(self, folder: Path) -> None:
        super().load(folder)
        state = read_json_state(folder / STATE, dict)
        self._loss_at_end, self._learned = state["loss_at_end"], state["learned"]
        self._dropped = state["dropped"]


def _with_memory(context: TaskContext, positions: list[int]) -> TaskContext:
    """Return the context with a part of its memory."""
    return replace(
        context,
        memory=[context.memory[i] for i in positions],
        memory_groups=[context.memory_groups[i] for i in positions],
    )


def _without_held(context: TaskContext) -> TaskContext:
    """Return the context with the old texts that are trained on."""
    return _with_memory(context, [i for i in range(len(context.memory)) if i % HELD_OLD == 0])
