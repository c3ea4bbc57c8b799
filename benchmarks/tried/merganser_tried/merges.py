"""Merges whose weight, alarms, rehearsal or moments are chosen in another way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from merganser.control import Merge
from merganser.training.aim.callback import AimMerging
from merganser.training.aim.fusion import Update
from merganser.training.rehearsal import rehearse_step
from merganser.weights import Weights
from merganser_tried.losses import TaskLosses, bounded, parabola_minimum
from merganser_tried.options import AimTriedOptions

SHRINKAGE = 8
"""Old texts at which a measured weight is drawn halfway to the controller's."""

MAY_RISE = (0.1, 0.25)
"""What the loss of an earlier task may rise by with ``held_out_bounded``: nats, or a share of it."""

POINTS = (0.0, 0.5, 1.0)
"""Weights at which losses are measured."""


class TriedMerging(AimMerging):
    """AimMerging's callback with the options of :class:`AimTriedOptions`.

    Args:
        options: what is tried.
        losses: of every earlier task, on texts that may be trained on or not, as the options say.
        new: texts of the new task on which the weights of merges are measured.
    """

    def __init__(self, *args: Any, options: AimTriedOptions, losses: TaskLosses, new: Sequence[Any], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._tried = options
        self._task_losses = losses
        self._measured = new

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._model = kwargs["model"]
        if self._tried.until_recovered is not None:
            self._memory_at_start = self._measure(self._model, self._probing.batch(0))

    def _probe(self, model: nn.Module, step: int) -> float:
        if self._tried.alarms == "mean":
            return super()._probe(model, step)
        with self.records.timed("probing_seconds"):
            return self._task_losses.risen(self._task_losses.measure(model))

    def _merge(self, decision: Merge, model: nn.Module, optimizer: Any, clip: float, probe: float | None) -> None:
        # With another signal than the loss itself, the loss on the memory is measured at the merge.
        super()._merge(decision, model, optimizer, clip, probe if self._tried.alarms == "mean" else None)
        if self._tried.halve_moments and self.merges[-1].status == "applied":
            with torch.no_grad():
                for moments in getattr(optimizer, "optimizer", optimizer).state.values():
                    moments["exp_avg"].mul_(0.5)
                    moments["exp_avg_sq"].mul_(0.5)

    def _rehearse(self, decision: Merge, model: nn.Module, optimizer: Any, clip: float) -> int:
        part = self._tried.until_recovered
        if part is None:
            return super()._rehearse(decision, model, optimizer, clip)
        batch, taken = self._probing.batch(0), 0
        now = self._measure(model, batch)
        enough = now - part * (now - self._memory_at_start)
        while taken < decision.rehearsal_steps and now > enough:
            rows = self._batch(self._rehearsal.rehearsal(self._batches_drawn))
            self._batches_drawn += 1
            with self.records.timed("rehearsal_seconds"):
                rehearse_step(model, optimizer, rows, clip, self.loss, 1.0, self._observe_step)
            self.cost.examples_rehearsed += self._rehearsal.batch_size
            taken += 1
            now = self._measure(model, batch)
        return taken

    def _fuse(self, decision: Merge, after_new: Weights, change_new: Weights) -> Update:
        if self._tried.measured_weight is not None:
            with self.records.timed("merge_eval_seconds"):
                weight = self._best_weight(decision, change_new)
            decision = replace(decision, weight_new=weight, weight_old=1 - weight)
        return super()._fuse(decision, after_new, change_new)

    def _best_weight(self, decision: Merge, change: Weights) -> float:
        """Return the weight of the new update at which the sum of the losses is least, as ``measured_weight`` says."""
        at: list[dict[str, float]] = []
        after = self._weights.snapshot()
        new = self._batch(list(self._measured))
        for weight in POINTS:
            self._weights.copy_(self._start).combine_(1.0, [(weight, change)])
            at.append({"": self._measure(self._model, new)} | self._task_losses.measure(self._model))
        self._weights.copy_(after)
        old = [task for task in at[0] if task]
        sums = [losses[""] + sum(losses[task] for task in old) / len(old) for losses in at]
        weight = parabola_minimum((sums[0], sums[1], sums[2]))
        if self._tried.measured_weight == "rehearsed":
            return 0.5 * (weight + decision.weight_new)
        texts = len(self.memory)  # as many are held out as are trained on
        weight = (texts * weight + SHRINKAGE * decision.weight_new) / (texts + SHRINKAGE)
        if self._tried.measured_weight == "held_out_bounded":
            for task in old:
                start = self._task_losses.start[task]
                most = start + max(MAY_RISE[0], MAY_RISE[1] * start)
                weight = bounded(weight, (at[0][task], at[1][task], at[2][task]), most)
        return weight
