"""Merges whose weight, alarms, rehearsal or moments are chosen in another way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from merganser.control import Merge
from merganser.training.aim.callback import AimMerging
from merganser.training.aim.fusion import Update
from merganser.training.rehearsal import rehearse_step
from merganser.weights import Weights
from merganser_tried.losses import NewTexts, TaskLosses, bounded, parabola_minimum
from merganser_tried.options import AimTriedOptions

SHRINKAGE = 8
"""Old texts at which a measured weight is drawn halfway to the controller's."""

MAY_RISE = (0.1, 0.25)
"""What the loss of an earlier task may rise by with ``held_out_bounded``: nats, or a share of it."""

BLOCK = re.compile(r"(?:layer|layers|block|h)\.\d+\.")
"""What the names of a block's weights have in common."""

POINTS = (0.0, 0.5, 1.0)
"""Weights at which losses are measured."""


class TriedMerging(AimMerging):
    """AimMerging's callback with the options of :class:`AimTriedOptions`.

    Args:
        options: what is tried.
        losses: of every earlier task, on texts that may be trained on or not, as the options say.
        new: texts of the new task on which the weights of merges are measured.
    """

    def __init__(self, *args: Any, options: AimTriedOptions, losses: TaskLosses, new: NewTexts, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._tried = options
        self._task_losses = losses
        self._new_texts = new

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
        last = self.merges[-1]
        if self._tried.measured_weight is not None and last.status == "applied":
            self.merges[-1] = last.model_copy(update={"reason": f"weight from {self._measured}"})  # for the ledger
        if self._tried.halve_moments and last.status == "applied":
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
        if self._tried.measured_weight is None:
            return super()._fuse(decision, after_new, change_new)
        with self.records.timed("merge_eval_seconds"):
            weights = self._best_weights(decision, change_new)
        mean = sum(weights.values()) / len(weights)
        update = super()._fuse(replace(decision, weight_new=mean, weight_old=1 - mean), after_new, change_new)
        self._move({name: weights[self._block(name)] for name in change_new}, change_new)
        return update

    def _block(self, name: str) -> str:
        """Return the block of the model that a weight belongs to: all are one without ``per_block``."""
        number = BLOCK.search(name) if self._tried.per_block else None
        return number.group(0) if number else ""

    @torch.no_grad()
    def _move(self, weights: Mapping[str, float], change: Weights) -> None:
        """Put the weights at a point of the line from those before the steps on the new task: name -> weight."""
        for name, tensor in self._weights.items():
            tensor.copy_(self._start[name] + weights[name] * change[name])

    def _best_weights(self, decision: Merge, change: Weights) -> dict[str, float]:
        """Return block -> the weight of the new update at which the sum of what is measured is least."""
        after = self._weights.snapshot()
        best, lines = {}, []
        for block in dict.fromkeys(self._block(name) for name in change):
            at = []
            for weight in POINTS:
                line = {name: weight if self._block(name) == block else decision.weight_new for name in change}
                self._move(line, change)
                at.append(self._measured_now())
            best[block] = self._weight(decision, at)
            rounded = [{task or "new": round(value, 3) for task, value in measured.items()} for measured in at]
            lines.append(f"{block} {rounded} gives {best[block]:.3g}".strip())
        self._weights.copy_(after)
        self._measured = f"{self._tried.measured_by} at {POINTS}: " + "; ".join(lines)
        return best

    def _measured_now(self) -> dict[str, float]:
        """Return what is measured on new texts (under the empty name) and on those of every earlier task."""
        new = {"": self._new_texts.measure(self._model)}
        if self._tried.measured_by == "consistency":
            return new | {"the start": self._new_texts.divergence(self._model)}
        return new | self._task_losses.measure(self._model)

    def _weight(self, decision: Merge, at: Sequence[Mapping[str, float]]) -> float:
        """Return the weight from what was measured at three points, drawn to the controller's and bounded."""
        old = [task for task in at[0] if task]
        sums = [measured[""] + sum(measured[task] for task in old) / len(old) for measured in at]
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
