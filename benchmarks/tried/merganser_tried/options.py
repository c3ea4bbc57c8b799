"""The options of ``aim-tried``: those of ``aim``, and one for every ingredient that was tried."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from merganser.methods.aim import AimOptions
from merganser.methods.base import TaskContext


class AimTriedOptions(AimOptions):  # type: ignore[misc,valid-type]
    """AimMerging with ingredients that are not a part of it."""

    name: Literal["aim-tried"] = "aim-tried"
    alarms: Literal["mean", "worst_task"] = Field(
        "mean",
        description="worst_task: the forgetting signal is the largest, over the earlier tasks, of the loss on a few "
        "texts of each divided by what it was when the task began",
    )
    halve_moments: bool = Field(
        False, description="a merge halves the optimizer's moments; with moments: keep, or they are emptied first"
    )
    measured_weight: Literal["rehearsed", "held_out", "held_out_bounded"] | None = Field(
        None,
        description="the weight of a merge is where a parabola through the losses on new and old texts at 0, 1/2 and 1 "
        "has its minimum; rehearsed: on texts that are trained on, drawn halfway to the controller's weight; held_out: "
        "on every eighth new and every second old text, which are then never trained on, drawn to the controller's "
        "weight by n / (n + 8) of n old texts; held_out_bounded: and no further than where the loss of one earlier "
        "task is a tenth of a nat, or a quarter of it, above that at the task's start",
    )
    measured_by: Literal["loss", "expected_accuracy", "consistency"] = Field(
        "loss",
        description="what is measured for it on old and new texts; expected_accuracy: one minus the probability of the "
        "right answer, which counts a wrong answer given with confidence once; consistency: on new texts alone, their "
        "loss and the divergence from the answers that the model gave to them when the task began",
    )
    per_block: bool = Field(
        False, description="one measured weight for every block of the model, the others at the controller's meanwhile"
    )
    until_recovered: float | None = Field(
        None,
        gt=0,
        le=1,
        description="rehearsal before a merge ends where this part of the loss that the memory has gained since the "
        "task began is gone again, and after rehearsal_steps at most",
    )
    old_texts: Literal["evenly", "by_forgetting", "by_need", "by_loss", "in_bursts"] = Field(
        "evenly",
        description="by_forgetting: drawn from the earlier tasks in proportion to what each of them has lost since the "
        "task began; by_need: none while the memory has lost nothing, twice as many as replay_share where its loss has "
        "doubled, in proportion between; by_loss: in proportion to the memory's part of the sum of the losses on old "
        "and new texts, as many as replay_share where they are equal; in_bursts: whole batches at moments of model "
        "time, instead of replay_share",
    )
    consistent_with: Literal["start", "slow", "right", "known", "right_and_known"] = Field(
        "start",
        description="with consistency, to whose answers to old texts the model is held; start: its own when the task "
        "began; right: only to texts that it answered rightly then; known: only among the labels that were known "
        "then; slow: those of a moving average of its weights",
    )
    slow_decay: float = Field(0.9, ge=0, lt=1, description="of the moving average of the weights, per optimizer step")
    slow_deployed: bool = Field(False, description="deploy the moving average of the weights")
    rate_by_loss: bool = Field(
        False,
        description="the learning rate of every step times min(1, sqrt(r / l)), l the loss on its new texts and r the "
        "mean over earlier tasks of that in the last quarter of their steps",
    )
    flat_radius: float | None = Field(
        None,
        gt=0,
        description="in the first task, gradients are those so far uphill (sharpness-aware minimisation)",
    )
    earlier_weight: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="with training.asymmetric_loss: false: weight of earlier tasks' labels in the softmax of new texts",
    )
    new_beside_old: bool = Field(
        False, description="beside old texts stand as many new ones, compared with all labels as they are"
    )
    slots: Literal["evenly", "by_forgetting"] = Field(
        "evenly",
        description="by_forgetting: of what is stored half is kept, more of tasks whose loss has risen more since they "
        "were learned; store twice as much (memory.share)",
    )
    batches_per_pass_always: bool = Field(
        False, description="replay_batches_per_pass is followed whatever the model, also where whole texts are read"
    )

    def batches_per_pass(self, context: TaskContext) -> int:
        if not self.batches_per_pass_always:
            return super().batches_per_pass(context)
        share, batches = self._share(context), self.replay_batches_per_pass
        if share is None or batches is None or share <= (affordable := self._affordable(context)):
            return 1
        return batches if affordable * batches < 1 else 1
